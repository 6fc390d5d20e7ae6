// Copying a list of ranges by several threads, in the order of the list, with progress that others can wait for.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "kernels.h"

namespace vnpu {

struct CopyEntry {
    std::uint64_t destination;
    std::uint64_t source;
    std::size_t length;
};

struct CopyOptions {
    int threads = 1;
    std::vector<int> cpus;  // thread i runs on cpus[i % size]; empty: wherever
    std::string kernel;     // empty: the best
};

// Throws std::invalid_argument where destinations overlap each other or a source.
void check_overlaps(const std::vector<CopyEntry>& entries);

// The entries laid end to end are one stream of bytes, which is cut into pieces of 1 MiB. Threads take the pieces in
// order; `prefix` is how far the stream is whole from its start, and everything else follows from that number.
class CopyStream {
   public:
    static constexpr std::size_t piece_size = std::size_t{1} << 20;

    // Throws std::invalid_argument where destinations overlap each other or a source.
    CopyStream(std::vector<CopyEntry> entries, CopyKernel kernel);

    void work();  // until nothing is left to take; from any number of threads
    void cancel();
    // Until the first `entries` entries are whole. False: time is up, or it was cancelled before.
    bool wait(std::size_t entries, std::chrono::duration<double> timeout);

    bool done() const { return bytes_done() == bytes_total(); }
    bool cancelled() const { return cancelled_.load(std::memory_order_acquire); }
    std::size_t bytes_done() const { return prefix_.load(std::memory_order_acquire); }
    std::size_t bytes_total() const { return ends_.empty() ? 0 : ends_.back(); }
    std::size_t entries_done() const;
    std::size_t entries_total() const { return entries_.size(); }
    double seconds() const;

   private:
    static constexpr std::size_t nobody_waits = ~std::size_t{0};

    void copy_piece(std::size_t piece) const;
    void finish(std::size_t piece);
    std::size_t end_of(std::size_t piece) const;

    std::vector<CopyEntry> entries_;
    std::vector<std::size_t> ends_;  // where each entry ends in the stream
    CopyKernel kernel_;
    std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();

    std::atomic<std::size_t> next_{0};  // piece to take
    std::atomic<std::size_t> prefix_{0};
    std::atomic<bool> cancelled_{false};

    mutable std::mutex mutex_;  // guards everything below
    std::condition_variable moved_;
    std::vector<bool> finished_;
    std::size_t whole_ = 0;  // pieces finished without a gap
    std::size_t lowest_wanted_ = nobody_waits;  // a prefix below this wakes nobody, so a waiter costs nothing
    std::chrono::steady_clock::time_point end_{};
};

// A CopyStream with threads of its own, started at once. Destruction cancels and joins.
class CopyJob {
   public:
    CopyJob(std::vector<CopyEntry> entries, const CopyOptions& options);
    CopyJob(const CopyJob&) = delete;
    CopyJob& operator=(const CopyJob&) = delete;
    ~CopyJob() { cancel(); }

    void cancel();
    CopyStream& stream() { return stream_; }
    const CopyStream& stream() const { return stream_; }

   private:
    void join();

    CopyStream stream_;
    std::mutex joining_;
    std::vector<std::thread> threads_;
};

// Seconds it took. With one thread and no CPUs given it is the caller's.
double copy(std::vector<CopyEntry> entries, const CopyOptions& options);

}  // namespace vnpu
