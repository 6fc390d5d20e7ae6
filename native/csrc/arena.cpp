#include "arena.h"

#include <algorithm>
#include <iterator>
#include <new>
#include <stdexcept>
#include <string>

namespace vnpu {

namespace {

constexpr std::size_t nowhere = ~std::size_t{0};

std::size_t round_up(std::size_t value, std::size_t unit) { return (value + unit - 1) / unit * unit; }

std::vector<Extent> list(const std::map<std::size_t, std::size_t>& blocks) {
    std::vector<Extent> extents;
    extents.reserve(blocks.size());
    for (const auto& [offset, length] : blocks) {
        extents.push_back({offset, length});
    }
    return extents;
}

}  // namespace

Arena::Arena(std::uintptr_t base, std::size_t reserved, std::size_t chunk, std::size_t capacity)
    : base_(base), reserved_(reserved), chunk_(chunk) {
    if (chunk == 0 || chunk % page != 0 || base % page != 0 || base == 0) {
        throw std::invalid_argument("an arena's base and chunk must be positive multiples of 4096");
    }
    if (reserved == 0 || reserved % chunk != 0 || base + reserved < base) {
        throw std::invalid_argument("an arena's reservation must be a positive multiple of its chunk, here " +
                                    std::to_string(chunk));
    }
    grow(capacity);
}

void Arena::grow(std::size_t capacity) {
    const std::lock_guard lock(mutex_);
    if (capacity < capacity_ || capacity > reserved_ || capacity % chunk_ != 0) {
        throw std::invalid_argument("an arena of " + std::to_string(capacity_) + " bytes grows in chunks of " +
                                    std::to_string(chunk_) + " up to " + std::to_string(reserved_) + ", not to " +
                                    std::to_string(capacity));
    }
    if (capacity > capacity_) {
        add_hole(capacity_, capacity - capacity_);
        capacity_ = capacity;
    }
}

std::size_t Arena::trim() {
    const std::lock_guard lock(mutex_);
    const std::size_t capacity = round_up(top_locked(), chunk_);
    if (capacity < capacity_) {  // then the last hole reaches from below there to the end
        const auto last = std::prev(holes_.end());
        if (last->first < capacity) {
            last->second = capacity - last->first;
        } else {
            holes_.erase(last);
        }
        capacity_ = capacity;
    }
    return capacity_;
}

// Where a block fits first, or `nowhere`.
std::size_t Arena::place(std::size_t size, std::size_t alignment) {
    for (const auto& [offset, length] : holes_) {
        const std::size_t start = round_up(base_ + offset, alignment) - base_;
        const std::size_t skipped = start - offset;
        if (skipped <= length && size <= length - skipped) {
            return start;
        }
    }
    return nowhere;
}

std::uintptr_t Arena::allocate(std::size_t size, std::size_t alignment) noexcept {
    if (size == 0 || size > reserved_ || alignment > reserved_) {
        return 0;
    }
    size = round_up(size, page);
    const std::lock_guard lock(mutex_);
    const std::size_t start = place(size, std::max(alignment, page));
    if (start == nowhere) {
        return 0;
    }
    const auto hole = std::prev(holes_.upper_bound(start));
    const std::size_t end = hole->first + hole->second;
    try {
        const auto block = live_.emplace(start, size).first;
        try {
            if (start + size < end) {
                holes_.emplace(start + size, end - start - size);
            }
        } catch (...) {
            live_.erase(block);
            throw;
        }
    } catch (const std::bad_alloc&) {
        return 0;
    }
    if (hole->first < start) {
        hole->second = start - hole->first;
    } else {
        holes_.erase(hole);
    }
    live_bytes_ += size;
    peak_bytes_ = std::max(peak_bytes_, live_bytes_);
    return base_ + start;
}

bool Arena::free(std::uintptr_t address) noexcept {
    const std::lock_guard lock(mutex_);
    const auto block = live_.find(address - base_);
    if (block == live_.end()) {
        return false;
    }
    live_bytes_ -= block->second;
    // The block's own node becomes the hole's: freeing allocates nothing, so it cannot fail.
    auto node = live_.extract(block);
    const auto above = holes_.lower_bound(node.key());
    if (above != holes_.end() && node.key() + node.mapped() == above->first) {
        node.mapped() += above->second;
        holes_.erase(above);
    }
    const auto next = holes_.lower_bound(node.key());
    if (next != holes_.begin()) {
        const auto below = std::prev(next);
        if (below->first + below->second == node.key()) {
            below->second += node.mapped();
            return true;
        }
    }
    holes_.insert(std::move(node));
    return true;
}

void Arena::add_hole(std::size_t offset, std::size_t length) {
    if (!holes_.empty()) {
        const auto last = std::prev(holes_.end());
        if (last->first + last->second == offset) {
            last->second += length;
            return;
        }
    }
    holes_.emplace(offset, length);
}

void Arena::spilled(std::size_t size) noexcept {
    const std::lock_guard lock(mutex_);
    spilled_bytes_ += size;
    spilled_blocks_ += 1;
}

std::vector<Extent> Arena::blocks() const {
    const std::lock_guard lock(mutex_);
    return list(live_);
}

std::vector<Extent> Arena::extents() const {
    std::vector<Extent> merged;
    for (const Extent& block : blocks()) {
        if (!merged.empty() && merged.back().offset + merged.back().length == block.offset) {
            merged.back().length += block.length;
        } else {
            merged.push_back(block);
        }
    }
    return merged;
}

std::vector<std::size_t> Arena::chunks_in_use() const {
    std::vector<std::size_t> indices;
    for (const auto& [offset, length] : extents()) {
        std::size_t index = offset / chunk_;
        if (!indices.empty() && indices.back() == index) {
            ++index;
        }
        for (; index * chunk_ < offset + length; ++index) {
            indices.push_back(index);
        }
    }
    return indices;
}

std::size_t Arena::top_locked() const { return live_.empty() ? 0 : live_.rbegin()->first + live_.rbegin()->second; }

std::size_t Arena::top() const {
    const std::lock_guard lock(mutex_);
    return top_locked();
}

std::size_t Arena::capacity() const {
    const std::lock_guard lock(mutex_);
    return capacity_;
}

std::size_t Arena::live_bytes() const {
    const std::lock_guard lock(mutex_);
    return live_bytes_;
}

std::size_t Arena::live_blocks() const {
    const std::lock_guard lock(mutex_);
    return live_.size();
}

std::size_t Arena::peak_bytes() const {
    const std::lock_guard lock(mutex_);
    return peak_bytes_;
}

std::size_t Arena::spilled_bytes() const {
    const std::lock_guard lock(mutex_);
    return spilled_bytes_;
}

std::size_t Arena::spilled_blocks() const {
    const std::lock_guard lock(mutex_);
    return spilled_blocks_;
}

}  // namespace vnpu
