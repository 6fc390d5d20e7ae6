// Copies between host and device in the order they were given, and points in that order (events). `host` runs them on
// threads of its own, `ascend` and `cuda` on the vendor's streams.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "copy.h"

namespace vnpu {

using Address = std::uint64_t;
using Stream = std::uint64_t;  // as one driver object knows it; never 0, never used twice
using Event = std::uint64_t;   // the same

enum class CopyKind { host_to_device, device_to_host, device_to_device };

CopyKind copy_kind(std::string_view name);  // h2d, d2h or d2d; throws std::invalid_argument

// Between `copy` and the end of what it began, both sides stay as they are: nobody unmaps, unpins or frees them.
// Thread-safe. Everything throws DriverError; waits return false where time is up.
class Streams {
   public:
    Streams() = default;
    Streams(const Streams&) = delete;
    Streams& operator=(const Streams&) = delete;
    virtual ~Streams() = default;

    virtual Stream create_stream() = 0;
    // Waits for what is on it. Refused while a thread waits for it.
    virtual void destroy_stream(Stream stream) = 0;
    // Every entry, behind what is on the stream already. The device's side must be mapped by this driver; from device to
    // device addresses and lengths are multiples of 64 (aclrtMemcpyAsync).
    virtual void copy(Stream stream, std::span<const CopyEntry> entries, CopyKind kind) = 0;
    // Zeros, behind what is on the stream already; every range (an entry's destination) is mapped by this driver.
    virtual void zero(Stream stream, std::span<const CopyEntry> ranges) = 0;
    virtual bool wait_stream(Stream stream, double timeout_s) = 0;

    virtual Event create_event() = 0;
    virtual void destroy_event(Event event) = 0;
    // The event is the point behind what is on the stream now; an earlier point is forgotten.
    virtual void record(Event event, Stream stream) = 0;
    // What is put on the stream from now on waits for the event's point.
    virtual void stream_wait(Stream stream, Event event) = 0;
    // The rest is refused where the event was never recorded.
    virtual bool event_done(Event event) = 0;
    virtual bool wait_event(Event event, double timeout_s) = 0;
    // Seconds between two points that are done.
    virtual double elapsed(Event from, Event to) = 0;
};

class Book;

// What every driver refuses before it begins. Throws DriverError.
void check_copy(const Book& book, std::span<const CopyEntry> entries, CopyKind kind);

}  // namespace vnpu
