// A copy between host and device that is done in order and tells how far it is, whatever the driver does it with.
#pragma once

#include <chrono>
#include <cstddef>
#include <memory>
#include <vector>

#include "streams.h"

namespace vnpu {

// Started at once. Both sides stay until it is done; destruction cancels. Thread-safe; everything throws DriverError.
class OrderedCopy {
   public:
    OrderedCopy() = default;
    OrderedCopy(const OrderedCopy&) = delete;
    OrderedCopy& operator=(const OrderedCopy&) = delete;
    virtual ~OrderedCopy() = default;

    // Until the first `entries` entries are whole. False: time is up, or it was cancelled before.
    virtual bool wait(std::size_t entries, double timeout_s) = 0;
    // Returns when nothing is copied any more. What a device was given already is still done.
    virtual void cancel() = 0;
    virtual bool cancelled() const = 0;
    virtual std::size_t entries_done() = 0;
    virtual std::size_t entries_total() const = 0;
    virtual std::size_t bytes_done() = 0;
    virtual std::size_t bytes_total() const = 0;
    // From the start until the last byte, or until now.
    virtual double seconds() = 0;

    bool done() { return bytes_done() == bytes_total(); }
};

// By threads of this process, with the copy kernels.
std::unique_ptr<OrderedCopy> copy_by_threads(std::vector<CopyEntry> entries, const CopyOptions& options);

// By a stream of its own, with an event at least every `step` bytes. `streams` outlives it.
std::unique_ptr<OrderedCopy> copy_by_stream(Streams& streams, std::vector<CopyEntry> entries, CopyKind kind,
                                            std::size_t step = std::size_t{32} << 20);

}  // namespace vnpu
