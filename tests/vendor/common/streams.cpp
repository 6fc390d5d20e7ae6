#include "streams.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <iterator>
#include <thread>
#include <vector>

namespace simulator {

namespace {

constexpr auto laziness = std::chrono::milliseconds(2);

}  // namespace

std::uint64_t Streams::create(int device) {
    const std::lock_guard lock(mutex_);
    auto stream = std::make_shared<Stream>();
    stream->device = device;
    streams_.emplace(next_, stream);
    std::thread([this, stream] { run(stream); }).detach();
    return next_++;
}

Result Streams::destroy(std::uint64_t stream) {
    const std::lock_guard lock(mutex_);
    const auto gone = find(stream);
    if (!gone) {
        return refuse(Fault::invalid_handle, "no such stream");
    }
    gone->ending = true;
    streams_.erase(stream);
    changed_.notify_all();
    return {};
}

std::optional<int> Streams::device(std::uint64_t stream) const {
    const std::lock_guard lock(mutex_);
    const auto found = find(stream);
    return found ? std::optional(found->device) : std::nullopt;
}

bool Streams::may_run(const Stream& stream) const {
    if (held_ || stream.queue.empty()) {
        return false;
    }
    const Item& next = stream.queue.front();
    return next.until ? next.until->done : hurry_ != 0 || stream.ending || Clock::now() >= next.due;
}

void Streams::run(std::shared_ptr<Stream> stream) {
    std::unique_lock lock(mutex_);
    while (!stream->ending || !stream->queue.empty()) {
        if (!may_run(*stream)) {
            if (stream->queue.empty() || held_ || stream->queue.front().until) {
                changed_.wait(lock);
            } else {
                changed_.wait_until(lock, stream->queue.front().due);
            }
            continue;
        }
        const Item item = std::move(stream->queue.front());
        stream->queue.pop_front();
        if (item.work) {
            stream->busy = true;
            lock.unlock();
            const Fault fault = item.work();
            lock.lock();
            stream->busy = false;
            stream->failed = fault != Fault::none ? fault : stream->failed;
        }
        changed_.notify_all();
    }
}

Result Streams::push(std::uint64_t stream, Work work) {
    const std::lock_guard lock(mutex_);
    const auto found = find(stream);
    if (!found) {
        return refuse(Fault::invalid_handle, "no such stream");
    }
    found->queue.push_back({Clock::now() + laziness, std::move(work), nullptr});
    changed_.notify_all();
    return {};
}

template <typename Condition>
bool Streams::wait_until(std::unique_lock<std::mutex>& lock, int timeout_ms, Condition&& condition) {
    if (timeout_ms == 0) {
        return condition();
    }
    hurry_ += 1;
    changed_.notify_all();
    bool met = true;
    if (timeout_ms == forever) {
        changed_.wait(lock, condition);
    } else {
        met = changed_.wait_for(lock, std::chrono::milliseconds(timeout_ms), condition);
    }
    hurry_ -= 1;
    return met;
}

Result Streams::wait(std::uint64_t stream, int timeout_ms) {
    std::unique_lock lock(mutex_);
    const auto found = find(stream);
    if (!found) {
        return refuse(Fault::invalid_handle, "no such stream");
    }
    if (!wait_until(lock, timeout_ms, [&] { return found->queue.empty() && !found->busy; })) {
        return refuse(Fault::timeout, "the stream is not done in time");
    }
    return {found->failed, found->failed != Fault::none ? "a copy on the stream touched what is not mapped" : ""};
}

Result Streams::query(std::uint64_t stream, bool* done) {
    const std::lock_guard lock(mutex_);
    const auto found = find(stream);
    if (!found) {
        return refuse(Fault::invalid_handle, "no such stream");
    }
    *done = found->queue.empty() && !found->busy;
    return {found->failed, found->failed != Fault::none ? "a copy on the stream touched what is not mapped" : ""};
}

std::shared_ptr<Streams::Stream> Streams::find(std::uint64_t stream) const {
    const auto found = streams_.find(stream);
    return found == streams_.end() ? nullptr : found->second;
}

Streams::Event* Streams::find_event(std::uint64_t event) {
    const auto found = events_.find(event);
    return found == events_.end() ? nullptr : &found->second;
}

std::uint64_t Streams::create_event(bool timed, bool waitable) {
    const std::lock_guard lock(mutex_);
    events_.emplace(next_, Event{timed, waitable, nullptr});
    return next_++;
}

Result Streams::destroy_event(std::uint64_t event) {
    const std::lock_guard lock(mutex_);
    return events_.erase(event) != 0 ? Result{} : refuse(Fault::invalid_handle, "no such event");
}

Result Streams::record(std::uint64_t event, std::uint64_t stream) {
    const std::lock_guard lock(mutex_);
    Event* const recorded = find_event(event);
    const auto found = find(stream);
    if (recorded == nullptr || !found) {
        return refuse(Fault::invalid_handle, "no such event or stream");
    }
    auto point = std::make_shared<Point>();
    recorded->last = point;
    found->queue.push_back({Clock::now() + laziness,
                            [this, point] {
                                const std::lock_guard inner(mutex_);
                                point->done = true;
                                point->at = Clock::now();
                                return Fault::none;
                            },
                            nullptr});
    changed_.notify_all();
    return {};
}

Result Streams::stream_wait(std::uint64_t stream, std::uint64_t event) {
    const std::lock_guard lock(mutex_);
    Event* const awaited = find_event(event);
    const auto found = find(stream);
    if (awaited == nullptr || !found) {
        return refuse(Fault::invalid_handle, "no such event or stream");
    }
    if (!awaited->waitable) {
        return refuse(Fault::invalid_value, "the event was not created to be waited for by streams");
    }
    if (awaited->last) {
        found->queue.push_back({Clock::now(), nullptr, awaited->last});
        changed_.notify_all();
    }
    return {};
}

Result Streams::query_event(std::uint64_t event, bool* recorded, bool* done) {
    const std::lock_guard lock(mutex_);
    const Event* const found = find_event(event);
    if (found == nullptr) {
        return refuse(Fault::invalid_handle, "no such event");
    }
    *recorded = found->last != nullptr;
    *done = found->last && found->last->done;
    return {};
}

Result Streams::wait_event(std::uint64_t event, int timeout_ms) {
    std::unique_lock lock(mutex_);
    const Event* const found = find_event(event);
    if (found == nullptr) {
        return refuse(Fault::invalid_handle, "no such event");
    }
    const auto point = found->last;
    if (point && !wait_until(lock, timeout_ms, [&] { return point->done; })) {
        return refuse(Fault::timeout, "the event did not come in time");
    }
    return {};
}

Result Streams::elapsed(std::uint64_t start, std::uint64_t end, float* milliseconds, bool* ready) {
    const std::lock_guard lock(mutex_);
    const Event* const from = find_event(start);
    const Event* const to = find_event(end);
    if (from == nullptr || to == nullptr || !from->timed || !to->timed || !from->last || !to->last) {
        return refuse(Fault::invalid_handle, "an event that was never recorded, or was created without a time");
    }
    *ready = from->last->done && to->last->done;
    if (*ready) {
        *milliseconds = std::chrono::duration<float, std::milli>(to->last->at - from->last->at).count();
    }
    return {};
}

void Streams::hold(bool held) {
    const std::lock_guard lock(mutex_);
    held_ = held;
    changed_.notify_all();
}

void Streams::count(std::string& json) const {
    const std::lock_guard lock(mutex_);
    json += "\"streams\": " + std::to_string(streams_.size()) + ", \"events\": " + std::to_string(events_.size());
}

Result HostMemory::allocate(std::size_t size, void** out) {
    void* const at = size == 0 ? MAP_FAILED
                               : ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (size == 0) {
        return refuse(Fault::invalid_value, "the size is 0");
    }
    if (at == MAP_FAILED) {
        return refuse(Fault::out_of_memory, "the host has no memory left");
    }
    const std::lock_guard lock(mutex_);
    allocated_.emplace(reinterpret_cast<Address>(at), size);
    *out = at;
    return {};
}

Result HostMemory::free(void* at) {
    const std::lock_guard lock(mutex_);
    const auto found = allocated_.find(reinterpret_cast<Address>(at));
    if (found == allocated_.end()) {
        return refuse(Fault::invalid_value, "that host memory was not allocated here");
    }
    ::munmap(at, found->second);
    allocated_.erase(found);
    return {};
}

bool HostMemory::overlaps(Address at, std::size_t size) const {
    return std::any_of(registered_.begin(), registered_.end(), [&](const auto& one) {
        return at < one.first + one.second && one.first < at + size;
    });
}

Result HostMemory::enroll(void* at, std::size_t size) {
    const std::lock_guard lock(mutex_);
    const auto from = reinterpret_cast<Address>(at);
    if (at == nullptr || size == 0) {
        return refuse(Fault::invalid_value, "nothing to register");
    }
    if (overlaps(from, size)) {
        return refuse(Fault::already, "some of it is registered already");
    }
    registered_.emplace(from, size);
    return {};
}

Result HostMemory::withdraw(void* at) {
    const std::lock_guard lock(mutex_);
    return registered_.erase(reinterpret_cast<Address>(at)) != 0
               ? Result{}
               : refuse(Fault::not_registered, "nothing was registered at that address");
}

bool HostMemory::pinned(Address at, std::size_t length) const {
    const std::lock_guard lock(mutex_);
    for (const auto* ranges : {&allocated_, &registered_}) {
        auto around = ranges->upper_bound(at);
        if (around != ranges->begin() && at - (--around)->first + length <= around->second) {
            return true;
        }
    }
    return false;
}

void HostMemory::count(std::string& json) const {
    const std::lock_guard lock(mutex_);
    json += "\"pinned\": " + std::to_string(allocated_.size()) +
            ", \"registered\": " + std::to_string(registered_.size()) + ", ";
}

namespace {

std::optional<std::vector<Piece>> both_kinds(const Space& space, Address at, std::size_t length, bool write) {
    if (space.is_device(at)) {
        return space.pieces(at, length, write);
    }
    return std::vector<Piece>{{nullptr, reinterpret_cast<char*>(at), length}};
}

}  // namespace

Work copy_work(const Space& space, Address to, Address from, std::size_t length) {
    return [&space, to, from, length] {
        const auto targets = both_kinds(space, to, length, true);
        const auto sources = both_kinds(space, from, length, false);
        if (!targets || !sources) {
            return Fault::illegal_address;
        }
        auto source = sources->begin();
        std::size_t taken = 0;
        for (const Piece& target : *targets) {
            for (std::size_t filled = 0; filled < target.length;) {
                const std::size_t part = std::min(target.length - filled, source->length - taken);
                std::memmove(target.at + filled, source->at + taken, part);
                filled += part;
                taken += part;
                if (taken == source->length) {
                    ++source;
                    taken = 0;
                }
            }
        }
        return Fault::none;
    };
}

Work fill_work(const Space& space, Address at, int value, std::size_t length) {
    return [&space, at, value, length] {
        const auto targets = both_kinds(space, at, length, true);
        if (!targets) {
            return Fault::illegal_address;
        }
        for (const Piece& target : *targets) {
            std::memset(target.at, value, target.length);
        }
        return Fault::none;
    };
}

}  // namespace simulator
