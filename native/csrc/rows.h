// Rows of a few hundred bytes that are read one behind the other, with gaps between them.
#pragma once

#include <algorithm>
#include <cstddef>
#include <span>

namespace vnpu {

struct Row {
    const char* data;
    std::size_t length;  // not 0
};

// Where rows go to.
struct Place {
    char* data;
    std::size_t length;  // not 0
};

// Asks for what is read 4 KiB later, as much at a time as is read at a time: the processor's own prefetchers know neither
// the gaps between rows nor where the next one begins, and a whole row's lines at once would be more than can be on their
// way. Into the first-level cache: lines that were asked into the second only came half as fast.
//
// Always inlined: GCC drops a call of a function that does nothing but ask for memory.
class Ahead {
   public:
    explicit Ahead(std::span<const Row> rows) : row_(rows.data()), end_(row_ + rows.size()) {
        for (at_ = distance; row_ != end_ && at_ >= row_->length; ++row_) {
            at_ -= row_->length;
        }
    }

    [[gnu::always_inline]] void ask(std::size_t bytes) {
        while (bytes != 0 && row_ != end_) {
            const std::size_t some = std::min(bytes, row_->length - at_);
            lines(some);
            bytes -= some;
        }
    }

    // Where each row is as long as a multiple of `bytes`, which divides 4096.
    template <std::size_t bytes>
    [[gnu::always_inline]] void step() {
        if (row_ != end_) {
            lines(bytes);
        }
    }

   private:
    static constexpr std::size_t distance = 4096;

    [[gnu::always_inline]] void lines(std::size_t bytes) {
        for (std::size_t line = 0; line < bytes; line += 64) {
            __builtin_prefetch(row_->data + at_ + line, 0, 3);
        }
        at_ += bytes;
        if (at_ == row_->length) {
            ++row_;
            at_ = 0;
        }
    }

    const Row* row_;
    const Row* end_;
    std::size_t at_;  // in this row
};

}  // namespace vnpu
