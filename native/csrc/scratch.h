// Zeroing chunks that are not mapped: through an address range of the driver's own.
#pragma once

#include <mutex>

#include "vendor.h"

namespace vnpu {

// Thread-safe; one chunk at a time. The calling thread has entered the vendor.
class Scratch {
   public:
    // `vendor` outlives this.
    explicit Scratch(Vendor& vendor) : vendor_(vendor) {}
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
    ~Scratch();

    // An own chunk that is mapped nowhere. `call` is for the error.
    void zero(const char* call, Raw chunk, std::size_t size);
    // A mapped range.
    void zero_at(const char* call, Address va, std::size_t size);

   private:
    void make_room(std::size_t size);
    void zero_locked(const char* call, Address va, std::size_t size);
    void fill(const char* call, const Piece& piece);

    Vendor& vendor_;
    std::mutex mutex_;  // guards everything below
    Address base_ = 0;
    std::size_t size_ = 0;
    Raw stream_ = 0;
};

}  // namespace vnpu
