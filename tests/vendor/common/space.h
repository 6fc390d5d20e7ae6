// One process's side of the card: handles of chunks, reserved addresses, and what is mapped where. The addresses are
// real but inaccessible to the processor: device memory is reached by copies only, as on a card.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "card.h"
#include "faults.h"

namespace simulator {

using Address = std::uint64_t;

struct Rules {  // in what the vendors differ; each says where it is written
    bool one_origin_per_reservation;  // own and imported handles do not mix in one, nor handles of two devices
    bool import_once;                 // a process imports a number once, and not one that it exported
    bool hint_is_an_order;            // else it is a wish
    bool mapped_is_accessible;        // else access is given by a call of its own
    bool access_by_mapping;           // of one mapping a call; else of any range of whole ones
};

// The host's window on a chunk's bytes, for copies; it lives as long as a copy needs it.
class Alias {
   public:
    Alias(const std::string& path, std::size_t size);
    ~Alias();
    Alias(const Alias&) = delete;
    Alias& operator=(const Alias&) = delete;
    char* bytes() const { return bytes_; }

   private:
    char* bytes_;
    std::size_t size_;
};

struct Piece {  // of a range of device memory
    std::shared_ptr<Alias> alias;
    char* at;
    std::size_t length;
};

class Space {
   public:
    Space(Card& card, const Rules& rules) : card_(card), rules_(rules) {}

    // Every size in bytes. A new chunk holds what somebody left there, never zeros.
    Result create(std::size_t size, int device, bool exportable, std::uint64_t* handle);
    Result release(std::uint64_t handle);
    Result export_number(std::uint64_t handle, bool any_pid, std::uint64_t* number);
    Result allow(std::uint64_t number, std::span<const std::int32_t> pids);
    Result import_number(std::uint64_t number, int device, std::int32_t bare_pid, std::uint64_t* handle);
    Result export_descriptor(std::uint64_t handle, int* fd);
    Result import_descriptor(int fd, std::uint64_t* handle);

    Result reserve(std::size_t size, std::size_t alignment, Address hint, Address* base);
    Result unreserve(Address base, std::optional<std::size_t> size);
    Result map(Address at, std::size_t size, std::size_t offset, std::uint64_t handle);
    Result unmap(Address at);
    // Every mapping of a range that is made of whole ones.
    Result unmap_whole(Address at, std::size_t size);
    // The range must be of whole mappings.
    Result set_access(Address at, std::size_t size, bool readable, bool writable);

    bool is_device(Address at) const;
    // The bytes behind a range, which must be mapped from end to end with the access that is wanted.
    std::optional<std::vector<Piece>> pieces(Address at, std::size_t length, bool write) const;
    void count(std::string& json) const;

   private:
    struct Chunk {
        std::uint64_t id;
        std::size_t size;
        int device;
        bool exportable;
        unsigned handles = 0;
        unsigned mappings = 0;
        std::shared_ptr<Alias> alias;
    };
    struct Handle {
        std::shared_ptr<Chunk> chunk;
        bool own;
        bool exported = false;
        std::uint64_t number = 0;  // that it was imported by
    };
    struct Mapping {
        std::shared_ptr<Chunk> chunk;
        Address reservation;
        bool own;
        bool readable;
        bool writable;
    };

    std::uint64_t keep(std::shared_ptr<Chunk> chunk, bool own, std::uint64_t number);
    std::shared_ptr<Chunk> attach(const ChunkRecord& record);
    void tell_card(const Chunk& chunk, bool own);
    void tell_card_locked(const Chunk& chunk, bool own);
    Handle* find(std::uint64_t handle);
    bool free_of_mappings(Address at, std::size_t size);
    std::vector<Address> whole_mappings(Address at, std::size_t size) const;
    void take_away(Address at);
    bool mixes(const Handle& handle, Address reservation) const;

    Card& card_;
    const Rules rules_;
    mutable std::mutex mutex_;  // guards everything below
    std::uint64_t next_handle_ = 0x5a0000001;
    std::unordered_map<std::uint64_t, Handle> handles_;
    std::map<std::uint64_t, std::weak_ptr<Chunk>> chunks_;
    std::map<Address, std::size_t> reservations_;
    std::map<Address, Mapping> mappings_;
};

}  // namespace simulator
