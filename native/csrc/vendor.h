// What one vendor's runtime can do, call by call. The rules, the books and the way back after a failure are in
// vendor_driver.cpp, the same for all of them; a Vendor only says which function is called how.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>

#include "driver.h"

namespace vnpu {

using Raw = std::uint64_t;  // the vendor's own handle, pointer or number of a chunk, stream or event

struct Piece {  // a mapped chunk
    Address va;
    std::size_t size;
    bool writable;
};

// Thread-safe. Each throws DriverError, whose `call` is the verb of Driver or Streams that needed it. Every thread calls
// between `enter` and `leave`, which make the device its current one and put back what was.
class Vendor {
   public:
    Vendor() = default;
    Vendor(const Vendor&) = delete;
    Vendor& operator=(const Vendor&) = delete;
    virtual ~Vendor() = default;

    virtual std::string_view name() const = 0;
    virtual std::string_view library() const = 0;
    virtual Sharing sharing() const = 0;

    virtual std::int64_t enter() = 0;
    virtual void leave(std::int64_t entered) noexcept = 0;

    virtual std::size_t granularity() = 0;
    virtual std::size_t free_bytes() = 0;

    // At `hint` or anywhere else; 0: anywhere.
    virtual Address reserve(std::size_t size, Address hint) = 0;
    virtual void release(Address va, std::size_t size) = 0;
    virtual Raw create(std::size_t size) = 0;
    virtual void destroy(Raw chunk) = 0;
    virtual void map(Address va, std::size_t size, Raw chunk) = 0;
    virtual void unmap(Address va, std::size_t size) = 0;
    // Lets the device touch what was mapped; sorted by address.
    virtual void access(std::span<const Piece> pieces) = 0;

    virtual std::int32_t share_id() = 0;
    virtual Shareable export_handle(Raw chunk) = 0;
    virtual void permit(Shareable shareable, std::span<const std::int32_t> share_ids) = 0;
    virtual Raw import_handle(Shareable shareable) = 0;

    virtual Address pin(std::size_t size) = 0;
    virtual void unpin(Address base) = 0;
    virtual void register_host(Address base, std::size_t size) = 0;
    virtual void unregister_host(Address base) = 0;

    virtual Raw create_stream() = 0;
    virtual void destroy_stream(Raw stream) = 0;
    virtual void copy(Raw stream, const CopyEntry& entry, CopyKind kind) = 0;
    virtual void zero(Raw stream, Address va, std::size_t size) = 0;
    virtual bool wait_stream(Raw stream, double timeout_s) = 0;
    virtual Raw create_event() = 0;
    virtual void destroy_event(Raw event) = 0;
    virtual void record(Raw event, Raw stream) = 0;
    virtual void stream_wait(Raw stream, Raw event) = 0;
    virtual bool event_done(Raw event) = 0;
    virtual bool wait_event(Raw event, double timeout_s) = 0;
    virtual double elapsed(Raw from, Raw to) = 0;
};

// Between its making and its end the device is the calling thread's.
class Entered {
   public:
    explicit Entered(Vendor& vendor) : vendor_(vendor), entered_(vendor.enter()) {}
    Entered(const Entered&) = delete;
    Entered& operator=(const Entered&) = delete;
    ~Entered() { vendor_.leave(entered_); }

   private:
    Vendor& vendor_;
    std::int64_t entered_;
};

std::unique_ptr<Driver> make_vendor_driver(std::unique_ptr<Vendor> vendor, int device, std::size_t limit);

}  // namespace vnpu
