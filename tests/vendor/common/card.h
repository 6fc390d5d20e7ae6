// A simulated card: what every process that opened a simulated vendor library sees of it. It is a folder of files: one
// with the books (`card`), one per physical chunk, one whose locks say which processes live. TEST CODE: no vNPU process
// knows of it; tests put it behind the vendors' own programming interfaces.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>

namespace simulator {

constexpr std::size_t granule = std::size_t{2} << 20;
constexpr int max_devices = 8;
constexpr int max_processes = 128;
constexpr int max_chunks = 4096;
constexpr int max_references = 8192;
constexpr int max_pids = 16;

// Every number here is written under the card's lock. Nothing is a sum of others, so that a process killed in the
// middle of a change leaves no wrong total behind.
struct ChunkRecord {
    std::uint64_t id;  // 0: the place is free
    std::uint64_t size;
    std::uint64_t inode;
    std::uint64_t shareable;  // 0: not exported by number
    std::int32_t device;
    std::int32_t exporter;  // slot of the process that exported it by number
    std::uint32_t any_pid;  // whoever knows the number may import
    std::uint32_t pid_count;
    std::int32_t pids[max_pids];  // bare pids that may import
};

struct Reference {  // what one process has of one chunk
    std::uint64_t chunk;  // 0: the place is free
    std::int32_t slot;
    std::uint32_t own;  // created here
    std::uint32_t handles;
    std::uint32_t mappings;
};

struct ProcessRecord {
    std::int32_t pid;  // 0: the place is free
    std::int32_t streams[max_devices];
};

struct Book {
    std::uint64_t next_id;
    std::uint64_t capacity;  // bytes a device
    std::uint64_t freed;     // chunks given back so far
    std::int32_t devices;
    std::int32_t max_streams;  // a device, all processes together
    ProcessRecord processes[max_processes];
    ChunkRecord chunks[max_chunks];
    Reference references[max_references];
};

extern const char* const vendor_name;  // defined by each vendor

// This process's view of the card.
class Card {
   public:
    // The card of this vendor in the folder $SIMULATED_CARD, made with $SIMULATED_CAPACITY bytes (default 1 GiB) on each of
    // $SIMULATED_DEVICES devices (2) and $SIMULATED_STREAMS streams a device (1984) where it is not there yet;
    // nullptr: no card.
    static Card* get();

    // Run with the lock of all processes held, after what dead processes left is taken back.
    template <typename Work>
    auto locked(Work&& work) {
        const Lock lock(*this);
        return work(*book_);
    }

    int slot() const { return slot_; }
    bool forked() const;  // this is a child of the process that opened the card
    std::string chunk_path(std::uint64_t id) const;

    // With the lock held:
    ChunkRecord* find(const std::function<bool(const ChunkRecord&)>& wanted);
    Reference& reference(std::uint64_t chunk);  // ours; made where it is not there
    std::uint64_t used(int device) const;
    int streams(int device) const;
    void forget_unused();  // chunks that nobody refers to

   private:
    class Lock {
       public:
        explicit Lock(Card& card);
        ~Lock();
        Lock(const Lock&) = delete;
        Lock& operator=(const Lock&) = delete;

       private:
        Card& card_;
    };

    explicit Card(std::string folder);
    void open_book();
    void take_slot();
    void bury_the_dead();
    bool exported_by_descriptor(const ChunkRecord& chunk) const;

    const std::string folder_;
    int lock_fd_ = -1;
    int life_fd_ = -1;
    int pid_ = 0;
    int slot_ = -1;
    Book* book_ = nullptr;
};

}  // namespace simulator
