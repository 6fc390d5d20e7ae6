#include "ordered_copy.h"

#include <algorithm>
#include <atomic>
#include <span>
#include <utility>

#include "error.h"

namespace vnpu {

namespace {

class ThreadCopy final : public OrderedCopy {
   public:
    ThreadCopy(std::vector<CopyEntry> entries, const CopyOptions& options) : job_(std::move(entries), options) {}

    bool wait(std::size_t entries, double timeout_s) override {
        return job_.stream().wait(entries, std::chrono::duration<double>(timeout_s));
    }
    void cancel() override { job_.cancel(); }
    bool cancelled() const override { return job_.stream().cancelled(); }
    std::size_t entries_done() override { return job_.stream().entries_done(); }
    std::size_t entries_total() const override { return job_.stream().entries_total(); }
    std::size_t bytes_done() override { return job_.stream().bytes_done(); }
    std::size_t bytes_total() const override { return job_.stream().bytes_total(); }
    double seconds() override { return job_.stream().seconds(); }

   private:
    CopyJob job_;
};

class StreamCopy final : public OrderedCopy {
   public:
    StreamCopy(Streams& streams, std::vector<CopyEntry> entries, CopyKind kind, std::size_t step);
    ~StreamCopy() override { end(); }

    bool wait(std::size_t entries, double timeout_s) override;
    void cancel() override;
    bool cancelled() const override { return cancelled_; }
    std::size_t entries_done() override;
    std::size_t entries_total() const override { return ends_.size(); }
    std::size_t bytes_done() override;
    std::size_t bytes_total() const override { return ends_.empty() ? 0 : ends_.back(); }
    double seconds() override;

   private:
    struct Mark {  // reached when the first `entries` entries are whole
        std::size_t entries;
        Event event;
    };

    void mark(std::size_t entries);
    void issue(std::span<const CopyEntry> entries, CopyKind kind, std::size_t step);
    void end() noexcept;

    Streams& streams_;
    const std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
    Stream stream_ = 0;
    std::vector<std::size_t> ends_;  // where each entry ends in the stream of bytes
    std::vector<Mark> marks_;        // the first is the start
    std::atomic<std::size_t> reached_{0};  // index of a mark that was seen reached
    std::atomic<bool> cancelled_{false};
};

StreamCopy::StreamCopy(Streams& streams, std::vector<CopyEntry> entries, CopyKind kind, std::size_t step)
    : streams_(streams) {
    std::size_t total = 0;
    for (const CopyEntry& entry : entries) {
        ends_.push_back(total += entry.length);
    }
    try {
        stream_ = streams_.create_stream();
        mark(0);
        issue(entries, kind, step);
    } catch (...) {
        end();
        throw;
    }
}

void StreamCopy::mark(std::size_t entries) {
    marks_.push_back({entries, streams_.create_event()});
    streams_.record(marks_.back().event, stream_);
}

void StreamCopy::issue(std::span<const CopyEntry> entries, CopyKind kind, std::size_t step) {
    for (std::size_t first = 0; first < entries.size();) {
        const std::size_t begun = first == 0 ? 0 : ends_[first - 1];
        std::size_t last = first + 1;
        while (last < entries.size() && ends_[last - 1] - begun < step) {
            ++last;
        }
        streams_.copy(stream_, entries.subspan(first, last - first), kind);
        mark(last);
        first = last;
    }
}

bool StreamCopy::wait(std::size_t entries, double timeout_s) {
    const auto enough = [entries](const Mark& each) { return each.entries >= entries; };
    const auto wanted = std::find_if(marks_.begin(), marks_.end(), enough);
    if (!streams_.wait_event(wanted->event, timeout_s)) {
        return false;
    }
    const auto index = static_cast<std::size_t>(wanted - marks_.begin());
    reached_ = std::max(reached_.load(), index);
    return true;
}

void StreamCopy::cancel() {
    cancelled_ = entries_done() < entries_total();
    wait(entries_total(), 1e9);
}

std::size_t StreamCopy::entries_done() {
    std::size_t at = reached_;
    while (at + 1 < marks_.size() && streams_.event_done(marks_[at + 1].event)) {
        ++at;
    }
    reached_ = std::max(reached_.load(), at);
    return marks_[at].entries;
}

std::size_t StreamCopy::bytes_done() {
    const std::size_t entries = entries_done();
    return entries == 0 ? 0 : ends_[entries - 1];
}

double StreamCopy::seconds() {
    if (entries_done() == entries_total() && streams_.event_done(marks_.front().event)) {
        return streams_.elapsed(marks_.front().event, marks_.back().event);
    }
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
}

void StreamCopy::end() noexcept {
    if (stream_ != 0) {
        attempt([this] { streams_.destroy_stream(stream_); });  // waits
    }
    for (const Mark& each : marks_) {
        attempt([&] { streams_.destroy_event(each.event); });
    }
}

}  // namespace

std::unique_ptr<OrderedCopy> copy_by_threads(std::vector<CopyEntry> entries, const CopyOptions& options) {
    return std::make_unique<ThreadCopy>(std::move(entries), options);
}

std::unique_ptr<OrderedCopy> copy_by_stream(Streams& streams, std::vector<CopyEntry> entries, CopyKind kind,
                                            std::size_t step) {
    return std::make_unique<StreamCopy>(streams, std::move(entries), kind, step);
}

}  // namespace vnpu
