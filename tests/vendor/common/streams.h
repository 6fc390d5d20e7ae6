// Streams, events and host memory of one process. A stream is a thread that does what it is given in order, and lazily:
// not before somebody waits or some time has passed, so that a caller who forgets to wait sees the old bytes.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_map>

#include "faults.h"
#include "space.h"

namespace simulator {

using Clock = std::chrono::steady_clock;
using Work = std::function<Fault()>;
constexpr int forever = -1;

class Streams {
   public:
    std::uint64_t create(int device);
    Result destroy(std::uint64_t stream);  // what is queued is done first, in the background
    std::optional<int> device(std::uint64_t stream) const;

    Result push(std::uint64_t stream, Work work);
    // Nothing queued is left. `timeout_ms`: forever, or so long; 0: look only.
    Result wait(std::uint64_t stream, int timeout_ms);
    Result query(std::uint64_t stream, bool* done);

    std::uint64_t create_event(bool timed, bool waitable);
    Result destroy_event(std::uint64_t event);
    Result record(std::uint64_t event, std::uint64_t stream);
    Result stream_wait(std::uint64_t stream, std::uint64_t event);
    Result query_event(std::uint64_t event, bool* recorded, bool* done);
    Result wait_event(std::uint64_t event, int timeout_ms);
    Result elapsed(std::uint64_t start, std::uint64_t end, float* milliseconds, bool* ready);

    void hold(bool held);
    void count(std::string& json) const;

   private:
    struct Point {  // a place in a stream
        bool done = false;
        Clock::time_point at;
    };
    struct Item {
        Clock::time_point due;
        Work work;
        std::shared_ptr<Point> until;  // instead of work: wait for it
    };
    struct Stream {
        int device;
        std::deque<Item> queue;
        bool busy = false;
        bool ending = false;
        Fault failed = Fault::none;
    };
    struct Event {
        bool timed;
        bool waitable;
        std::shared_ptr<Point> last;
    };

    void run(std::shared_ptr<Stream> stream);
    bool may_run(const Stream& stream) const;
    std::shared_ptr<Stream> find(std::uint64_t stream) const;
    Event* find_event(std::uint64_t event);
    template <typename Condition>
    bool wait_until(std::unique_lock<std::mutex>& lock, int timeout_ms, Condition&& condition);

    mutable std::mutex mutex_;
    std::condition_variable changed_;
    int hurry_ = 0;  // how many wait
    bool held_ = false;
    std::uint64_t next_ = 0x57000001;
    std::unordered_map<std::uint64_t, std::shared_ptr<Stream>> streams_;
    std::unordered_map<std::uint64_t, Event> events_;
};

// Host memory that the card knows: pinned by it or registered with it.
class HostMemory {
   public:
    Result allocate(std::size_t size, void** out);
    Result free(void* at);
    Result enroll(void* at, std::size_t size);
    Result withdraw(void* at);
    bool pinned(Address at, std::size_t length) const;
    void count(std::string& json) const;

   private:
    bool overlaps(Address at, std::size_t size) const;

    mutable std::mutex mutex_;
    std::map<Address, std::size_t> allocated_;
    std::map<Address, std::size_t> registered_;
};

// The work of a copy or a fill between addresses of either kind; looked up when it is done, not when it is ordered.
Work copy_work(const Space& space, Address to, Address from, std::size_t length);
Work fill_work(const Space& space, Address at, int value, std::size_t length);

}  // namespace simulator
