// A first-fit allocator over one reserved range of addresses whose first bytes are mapped. Its books lie outside the
// range, so blocks can be freed while their pages are away.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <vector>

namespace vnpu {

struct Extent {
    std::size_t offset;
    std::size_t length;
};

class Arena {
   public:
    static constexpr std::size_t page = 4096;

    // Throws std::invalid_argument where base or sizes are not whole pages and chunks.
    Arena(std::uintptr_t base, std::size_t reserved, std::size_t chunk, std::size_t capacity);
    Arena(const Arena&) = delete;
    Arena& operator=(const Arena&) = delete;

    // The first `capacity` bytes are mapped now; never less than before. Throws std::invalid_argument.
    void grow(std::size_t capacity);
    // Capacity becomes the chunks below `top`.
    std::size_t trim();

    // Address of a block of whole pages; 0 when nothing fits or the books cannot grow.
    std::uintptr_t allocate(std::size_t size, std::size_t alignment) noexcept;
    // False: no live block starts there.
    bool free(std::uintptr_t address) noexcept;
    // The hook took a block from elsewhere, because nothing fitted.
    void spilled(std::size_t size) noexcept;

    bool contains(std::uintptr_t address) const { return address - base_ < reserved_; }

    std::vector<Extent> blocks() const;
    std::vector<Extent> extents() const;             // neighbours merged
    std::vector<std::size_t> chunks_in_use() const;  // indices

    std::uintptr_t base() const { return base_; }
    std::size_t reserved() const { return reserved_; }
    std::size_t chunk() const { return chunk_; }
    std::size_t capacity() const;
    std::size_t top() const;  // just past the highest live block
    std::size_t live_bytes() const;
    std::size_t live_blocks() const;
    std::size_t peak_bytes() const;
    std::size_t spilled_bytes() const;
    std::size_t spilled_blocks() const;

   private:
    std::size_t top_locked() const;
    std::size_t place(std::size_t size, std::size_t alignment);
    void add_hole(std::size_t offset, std::size_t length);

    const std::uintptr_t base_;
    const std::size_t reserved_;
    const std::size_t chunk_;
    mutable std::mutex mutex_;  // guards everything below
    std::size_t capacity_ = 0;
    std::map<std::size_t, std::size_t> live_;   // offset -> length
    std::map<std::size_t, std::size_t> holes_;  // the same; no two touch; together with live_ they are [0, capacity)
    std::size_t live_bytes_ = 0;
    std::size_t peak_bytes_ = 0;
    std::size_t spilled_bytes_ = 0;
    std::size_t spilled_blocks_ = 0;
};

}  // namespace vnpu
