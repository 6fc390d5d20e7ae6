#include "host_streams.h"

#include <cerrno>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "deadline.h"
#include "error.h"
#include "kernels.h"
#include "signals.h"
#include "table.h"

namespace vnpu {

namespace {

using Clock = std::chrono::steady_clock;

// The points an event was recorded as are counted; waiting is for a count.
class HostEvent {
   public:
    std::uint64_t issue() {
        const std::lock_guard lock(mutex_);
        return ++issued_;
    }

    // The point of the last record; refused where there is none.
    std::uint64_t point(const char* call) const {
        const std::lock_guard lock(mutex_);
        if (issued_ == 0) {
            throw errno_error(call, EINVAL, "the event was never recorded", "record it on a stream first");
        }
        return issued_;
    }

    void reach(std::uint64_t point) {
        const std::lock_guard lock(mutex_);
        if (point > reached_) {  // records on two streams may be reached out of order: the latest counts
            reached_ = point;
            when_ = Clock::now();
        }
        moved_.notify_all();
    }

    bool wait(std::uint64_t point, Clock::time_point deadline) {
        std::unique_lock lock(mutex_);
        return moved_.wait_until(lock, deadline, [&] { return reached_ >= point; });
    }

    Clock::time_point when(const char* call) const {
        const std::lock_guard lock(mutex_);
        if (issued_ == 0 || reached_ < issued_) {
            throw errno_error(call, issued_ == 0 ? EINVAL : EAGAIN, "the event is not done", "wait for it first");
        }
        return when_;
    }

   private:
    mutable std::mutex mutex_;  // guards everything below
    std::condition_variable moved_;
    std::uint64_t issued_ = 0;
    std::uint64_t reached_ = 0;
    Clock::time_point when_{};
};

// A thread that does what it is given, in order; destruction waits for all of it.
class HostStream {
   public:
    HostStream() {
        const SignalsBlocked blocked;
        thread_ = std::thread([this] { work(); });
    }
    HostStream(const HostStream&) = delete;
    HostStream& operator=(const HostStream&) = delete;
    ~HostStream() {
        {
            const std::lock_guard lock(mutex_);
            ending_ = true;
        }
        given_.notify_all();
        thread_.join();
    }

    void give(std::function<void()> task) {
        {
            const std::lock_guard lock(mutex_);
            tasks_.push_back(std::move(task));
        }
        given_.notify_all();
    }

    bool wait(Clock::time_point deadline) {
        std::unique_lock lock(mutex_);
        const std::uint64_t wanted = finished_ + tasks_.size();
        return idle_.wait_until(lock, deadline, [&] { return finished_ >= wanted; });
    }

   private:
    void work() {
        std::unique_lock lock(mutex_);
        while (true) {
            given_.wait(lock, [this] { return ending_ || !tasks_.empty(); });
            if (tasks_.empty()) {
                return;
            }
            lock.unlock();
            tasks_.front()();  // only this thread takes from the front, and a deque keeps references
            lock.lock();
            tasks_.pop_front();
            finished_ += 1;
            idle_.notify_all();
        }
    }

    std::mutex mutex_;  // guards everything below
    std::condition_variable given_, idle_;
    std::deque<std::function<void()>> tasks_;
    std::uint64_t finished_ = 0;
    bool ending_ = false;
    std::thread thread_;
};

class HostStreams final : public Streams {
   public:
    explicit HostStreams(CopyCheck check) : check_(std::move(check)) {}

    Stream create_stream() override { return streams_.add(std::make_shared<HostStream>()); }
    void destroy_stream(Stream stream) override {
        streams_.remove("destroy_stream", stream, [](const auto& gone) { gone->wait(deadline_after(1e12)); });
    }

    void copy(Stream stream, std::span<const CopyEntry> entries, CopyKind kind) override {
        auto on = streams_.use("copy_async", stream);
        check_(entries, kind);
        auto stream_of_bytes =
            std::make_shared<CopyStream>(std::vector(entries.begin(), entries.end()), find_copy_kernel(""));
        (*on)->give([stream_of_bytes] { stream_of_bytes->work(); });
    }

    void zero(Stream stream, std::span<const CopyEntry> ranges) override {
        auto on = streams_.use("zero_async", stream);
        check_(ranges, CopyKind::host_to_device);
        (*on)->give([ranges = std::vector(ranges.begin(), ranges.end())] {
            for (const CopyEntry& range : ranges) {
                std::memset(reinterpret_cast<void*>(range.destination), 0, range.length);
            }
        });
    }

    bool wait_stream(Stream stream, double timeout_s) override {
        auto on = streams_.use("wait_stream", stream);
        return (*on)->wait(deadline_after(timeout_s));
    }

    Event create_event() override { return events_.add(std::make_shared<HostEvent>()); }
    void destroy_event(Event event) override {
        events_.remove("destroy_event", event, [](const auto&) {});
    }

    void record(Event event, Stream stream) override {
        auto of = events_.use("record", event);
        auto on = streams_.use("record", stream);
        (*on)->give([shared = *of, point = (*of)->issue()] { shared->reach(point); });
    }

    void stream_wait(Stream stream, Event event) override {
        auto of = events_.use("stream_wait", event);
        auto on = streams_.use("stream_wait", stream);
        (*on)->give([shared = *of, point = (*of)->point("stream_wait")] {
            shared->wait(point, deadline_after(1e12));
        });
    }

    bool event_done(Event event) override { return wait("event_done", event, 0); }
    bool wait_event(Event event, double timeout_s) override { return wait("wait_event", event, timeout_s); }

    double elapsed(Event from, Event to) override {
        auto first = events_.use("elapsed", from);
        auto last = events_.use("elapsed", to);
        return std::chrono::duration<double>((*last)->when("elapsed") - (*first)->when("elapsed")).count();
    }

   private:
    bool wait(const char* call, Event event, double timeout_s) {
        auto of = events_.use(call, event);
        return (*of)->wait((*of)->point(call), deadline_after(timeout_s));
    }

    CopyCheck check_;
    Table<std::shared_ptr<HostStream>> streams_{"stream"};
    Table<std::shared_ptr<HostEvent>> events_{"event"};
};

}  // namespace

std::unique_ptr<Streams> open_host_streams(CopyCheck check) { return std::make_unique<HostStreams>(std::move(check)); }

}  // namespace vnpu
