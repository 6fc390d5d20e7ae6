#include "copy.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <system_error>
#include <utility>

#include "deadline.h"
#include "signals.h"

namespace vnpu {

namespace {

struct Span {
    std::uint64_t start, end;
};

// Sorted by start; linear where they come sorted, as they do from an arena.
std::vector<Span> spans(const std::vector<CopyEntry>& entries, std::uint64_t CopyEntry::* start) {
    std::vector<Span> spans;
    spans.reserve(entries.size());
    for (const CopyEntry& entry : entries) {
        if (entry.*start + entry.length < entry.*start) {
            throw std::invalid_argument("a copy entry wraps around the end of memory");
        }
        if (entry.length != 0) {
            spans.push_back({entry.*start, entry.*start + entry.length});
        }
    }
    const auto before = [](const Span& a, const Span& b) { return a.start < b.start; };
    if (!std::is_sorted(spans.begin(), spans.end(), before)) {
        std::sort(spans.begin(), spans.end(), before);
    }
    return spans;
}

void check_cpus(const std::vector<int>& cpus) {
    cpu_set_t allowed;
    CPU_ZERO(&allowed);
    if (::sched_getaffinity(0, sizeof allowed, &allowed) != 0) {
        throw std::system_error(errno, std::generic_category(), "sched_getaffinity");
    }
    for (const int cpu : cpus) {
        if (cpu < 0 || cpu >= CPU_SETSIZE || !CPU_ISSET(cpu, &allowed)) {
            throw std::invalid_argument("CPU " + std::to_string(cpu) + " is not one this process may use");
        }
    }
}

// By the thread itself: from outside, one that has ended already would pin its caller (its id reads 0 in glibc). That
// the process may use the CPU was checked; should that have changed since, the copy runs elsewhere.
void pin_this_thread(int cpu) {
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(cpu, &one);
    ::pthread_setaffinity_np(::pthread_self(), sizeof one, &one);
}

void check_options(const CopyOptions& options) {
    if (options.threads < 1 || options.threads > 1024) {
        throw std::invalid_argument("threads must be 1 to 1024, not " + std::to_string(options.threads));
    }
    check_cpus(options.cpus);
}

}  // namespace

void check_overlaps(const std::vector<CopyEntry>& entries) {
    const std::vector<Span> to = spans(entries, &CopyEntry::destination);
    const std::vector<Span> from = spans(entries, &CopyEntry::source);
    const auto touches = [](const Span& a, const Span& b) { return b.start < a.end; };
    if (std::adjacent_find(to.begin(), to.end(), touches) != to.end()) {
        throw std::invalid_argument("two copy entries write the same bytes");
    }
    // Destinations are disjoint now, so those that end after a source starts begin at one place.
    for (const Span& source : from) {
        const auto ends_before = [](const Span& span, std::uint64_t value) { return span.end <= value; };
        const auto hit = std::lower_bound(to.begin(), to.end(), source.start, ends_before);
        if (hit != to.end() && hit->start < source.end) {
            throw std::invalid_argument("a copy entry writes bytes that an entry reads");
        }
    }
}

CopyStream::CopyStream(std::vector<CopyEntry> entries, CopyKernel kernel)
    : entries_(std::move(entries)), kernel_(kernel) {
    check_overlaps(entries_);
    ends_.reserve(entries_.size());
    std::size_t total = 0;
    for (const CopyEntry& entry : entries_) {
        ends_.push_back(total += entry.length);
    }
    finished_.resize((total + piece_size - 1) / piece_size);
    end_ = start_;
}

std::size_t CopyStream::end_of(std::size_t piece) const { return std::min((piece + 1) * piece_size, bytes_total()); }

void CopyStream::copy_piece(std::size_t piece) const {
    const std::size_t end = end_of(piece);
    std::size_t at = piece * piece_size;
    auto entry = static_cast<std::size_t>(std::upper_bound(ends_.begin(), ends_.end(), at) - ends_.begin());
    for (; at < end; ++entry) {
        const CopyEntry& current = entries_[entry];
        const std::size_t offset = current.length - (ends_[entry] - at);
        const std::size_t length = std::min(ends_[entry], end) - at;
        if (length != 0) {
            kernel_.copy(reinterpret_cast<void*>(current.destination + offset),
                         reinterpret_cast<const void*>(current.source + offset), length);
        }
        at += length;
    }
    kernel_.publish();
}

void CopyStream::finish(std::size_t piece) {
    const std::lock_guard lock(mutex_);
    finished_[piece] = true;
    const std::size_t before = whole_;
    while (whole_ < finished_.size() && finished_[whole_]) {
        ++whole_;
    }
    if (whole_ == before) {
        return;
    }
    if (whole_ == finished_.size()) {
        end_ = std::chrono::steady_clock::now();
    }
    const std::size_t prefix = end_of(whole_ - 1);
    prefix_.store(prefix, std::memory_order_release);
    if (prefix >= lowest_wanted_) {
        lowest_wanted_ = nobody_waits;
        moved_.notify_all();
    }
}

void CopyStream::work() {
    while (!cancelled()) {
        const std::size_t piece = next_.fetch_add(1, std::memory_order_relaxed);
        if (piece >= finished_.size()) {
            return;
        }
        copy_piece(piece);
        finish(piece);
    }
}

void CopyStream::cancel() {
    const std::lock_guard lock(mutex_);
    if (!done()) {
        cancelled_.store(true, std::memory_order_release);
        moved_.notify_all();
    }
}

bool CopyStream::wait(std::size_t entries, std::chrono::duration<double> timeout) {
    const std::size_t wanted = entries == 0 ? 0 : ends_.at(entries - 1);
    const auto whole = [this, wanted] { return bytes_done() >= wanted; };
    if (whole()) {
        return true;
    }
    const auto until = deadline_after(timeout.count());
    std::unique_lock lock(mutex_);
    bool in_time = true;
    while (in_time && !whole() && !cancelled()) {
        lowest_wanted_ = std::min(lowest_wanted_, wanted);
        in_time = moved_.wait_until(lock, until) == std::cv_status::no_timeout;
    }
    return whole();
}

std::size_t CopyStream::entries_done() const {
    return static_cast<std::size_t>(std::upper_bound(ends_.begin(), ends_.end(), bytes_done()) - ends_.begin());
}

double CopyStream::seconds() const {
    const std::lock_guard lock(mutex_);
    const auto end = done() ? end_ : std::chrono::steady_clock::now();
    return std::chrono::duration<double>(end - start_).count();
}

CopyJob::CopyJob(std::vector<CopyEntry> entries, const CopyOptions& options)
    : stream_(std::move(entries), find_copy_kernel(options.kernel)) {
    check_options(options);
    try {
        const SignalsBlocked blocked;
        for (std::size_t i = 0; i < static_cast<std::size_t>(options.threads); ++i) {
            const int cpu = options.cpus.empty() ? -1 : options.cpus[i % options.cpus.size()];
            threads_.emplace_back([this, cpu] {
                if (cpu >= 0) {
                    pin_this_thread(cpu);
                }
                stream_.work();
            });
        }
    } catch (...) {
        cancel();
        throw;
    }
}

void CopyJob::cancel() {
    stream_.cancel();
    join();
}

void CopyJob::join() {
    const std::lock_guard lock(joining_);
    for (std::thread& thread : threads_) {
        thread.join();
    }
    threads_.clear();
}

double copy(std::vector<CopyEntry> entries, const CopyOptions& options) {
    if (options.threads == 1 && options.cpus.empty()) {
        CopyStream stream(std::move(entries), find_copy_kernel(options.kernel));
        stream.work();
        return stream.seconds();
    }
    CopyJob job(std::move(entries), options);
    job.stream().wait(job.stream().entries_total(), std::chrono::hours(24 * 365));
    return job.stream().seconds();
}

}  // namespace vnpu
