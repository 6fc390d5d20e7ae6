// Who holds which address and which chunk, and Ascend's rules about it. Pure book-keeping: no system call, no lock.
#pragma once

#include <cstddef>
#include <map>
#include <string>
#include <unordered_map>
#include <utility>

#include "driver.h"

namespace vnpu {

enum class Origin { own, imported };

// Every verb either throws DriverError and changes nothing, or has taken effect. The rules:
//   1. a chunk is mapped whole, so at most at one address; no two mappings overlap; each lies in one reservation
//      (aclrtMapMem: size equals the chunk's, offset 0);
//   2. one reservation holds only own or only imported chunks at a time;
//   3. a handle is exported once, and only by the process that created it;
//   4. a mapped chunk is not removed; a reservation with something mapped is not released.
class Book {
   public:
    struct Entry {
        std::size_t size;
        Origin origin;
    };

    explicit Book(std::size_t granularity) : granularity_(granularity) {}

    void check_size(const char* call, std::size_t size) const;
    void check_reserve(std::size_t size, Address hint) const;

    void reserve(Address base, std::size_t size);
    std::size_t check_release(Address base) const;  // the reservation's size
    std::size_t release(Address base);              // the same

    Handle add(std::size_t size, Origin origin);
    Entry check_remove(Handle handle) const;
    Entry remove(Handle handle);

    void mark_exported(Handle handle);
    void unmark_exported(Handle handle);

    std::size_t map(const Placement& placement);  // the chunk's size
    Placement unmap(Address va);

    // Every byte of the range is in a mapped chunk, and may be written where that is wanted.
    void check_mapped(const char* call, Address start, std::size_t length, bool writing) const;

    std::size_t size_of(Handle handle) const { return chunks_.at(handle).size; }
    // An own chunk's size and where it is mapped, 0: nowhere.
    std::pair<std::size_t, Address> own(const char* call, Handle handle) const;
    void check_exported(const char* call, Handle handle) const;
    std::map<Address, std::size_t> empty_reservations() const;
    void count(DriverStats& stats) const;

   private:
    struct Reservation {
        std::size_t size = 0;
        std::size_t mapped = 0;  // chunks mapped in it
        Origin origin = Origin::own;  // of those
    };
    struct Chunk {
        std::size_t size = 0;
        Origin origin = Origin::own;
        bool exported = false;
        Address mapped_at = 0;  // 0: not mapped
        bool writable = true;   // where it is mapped
    };

    const Chunk& chunk(const char* call, Handle handle) const;
    Chunk& chunk(const char* call, Handle handle);
    Reservation& reservation_around(Address va, std::size_t size);
    void check_free(Address va, std::size_t size) const;

    std::size_t granularity_;
    Handle next_ = 1;
    std::map<Address, Reservation> reservations_;
    std::unordered_map<Handle, Chunk> chunks_;
    std::map<Address, Handle> mapped_;
};

// "0x7f00..." for messages.
std::string hex(Address value);

}  // namespace vnpu
