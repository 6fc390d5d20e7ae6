#include "scratch.h"

#include <cerrno>
#include <string>

namespace vnpu {

namespace {

constexpr double longest = 60;  // seconds; 1 GiB takes about 1 ms

}  // namespace

Scratch::~Scratch() {
    attempt([this] {
        const Entered entered(vendor_);
        attempt([this] { stream_ != 0 ? vendor_.destroy_stream(stream_) : void(); });
        attempt([this] { size_ != 0 ? vendor_.release(base_, size_) : void(); });
    });
}

void Scratch::make_room(std::size_t size) {
    if (size <= size_) {
        return;
    }
    const Address larger = vendor_.reserve(size, 0);
    if (size_ != 0) {
        insist([this] { vendor_.release(base_, size_); });
    }
    base_ = larger;
    size_ = size;
}

// Whatever happens, nothing is being written when this returns, as far as the device can be asked.
void Scratch::fill(const char* call, const Piece& piece) {
    vendor_.access({&piece, 1});
    try {
        zero_locked(call, piece.va, piece.size);
    } catch (...) {
        if (stream_ != 0 && !attempt([this] { vendor_.wait_stream(stream_, longest); })) {
            attempt([this] { vendor_.destroy_stream(stream_); });  // it is broken: the next chunk gets another
            stream_ = 0;
        }
        throw;
    }
}

void Scratch::zero(const char* call, Raw chunk, std::size_t size) {
    const std::lock_guard lock(mutex_);
    make_room(size);
    vendor_.map(base_, size, chunk);
    const auto unmap = [this, size] { vendor_.unmap(base_, size); };
    try {
        fill(call, {base_, size, true});
    } catch (...) {
        if (!insist(unmap)) {
            size_ = 0;  // the range is lost with what is in it
        }
        throw;
    }
    if (!attempt(unmap)) {
        try {
            unmap();
        } catch (...) {
            size_ = 0;
            throw;
        }
    }
}

void Scratch::zero_at(const char* call, Address va, std::size_t size) {
    const std::lock_guard lock(mutex_);
    zero_locked(call, va, size);
}

void Scratch::zero_locked(const char* call, Address va, std::size_t size) {
    if (stream_ == 0) {
        stream_ = vendor_.create_stream();
    }
    vendor_.zero(stream_, va, size);
    if (!vendor_.wait_stream(stream_, longest)) {
        throw errno_error(call, ETIMEDOUT, std::to_string(size) + " bytes were not zeroed in a minute",
                          "see whether the device hangs: nvidia-smi, npu-smi info");
    }
}

}  // namespace vnpu
