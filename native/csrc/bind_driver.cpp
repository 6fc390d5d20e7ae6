// Drivers and their streams, as Python sees them.
#include "bindings.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>

#include "chunk.h"
#include "driver.h"
#include "layouts.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace vnpu {

std::vector<vnpu::CopyEntry> copy_entries(const Entries& tuples) {
    std::vector<vnpu::CopyEntry> entries;
    entries.reserve(tuples.size());
    for (const auto& [destination, source, length] : tuples) {
        entries.push_back({destination, source, length});
    }
    return entries;
}

namespace {

using NoGil = nb::call_guard<nb::gil_scoped_release>;
using Pairs = std::vector<std::pair<Address, Handle>>;

PyObject* driver_error_type = nullptr;

void raise_driver_error(const DriverError& error) {
    nb::object raised = nb::steal(PyObject_CallFunction(driver_error_type, "s", error.what()));
    if (!raised.is_valid()) {
        return;  // Python's own error is set
    }
    raised.attr("call") = error.call;
    raised.attr("code") = error.code;
    raised.attr("name") = error.name;
    raised.attr("remedy") = error.remedy;
    PyErr_SetObject(driver_error_type, raised.ptr());
}

void bind_errors(nb::module_& module) {
    driver_error_type = PyErr_NewExceptionWithDoc(
        "native._native.DriverError", "A driver refused a call or the system failed; its state is what it was before.",
        PyExc_RuntimeError, nullptr);
    if (driver_error_type == nullptr) {
        throw nb::python_error();
    }
    module.attr("DriverError") = nb::handle(driver_error_type);
    nb::register_exception_translator([](const std::exception_ptr& error, void*) {
        try {
            std::rethrow_exception(error);
        } catch (const DriverError& driver_error) {
            raise_driver_error(driver_error);
        }
    });
}

void map_pairs(Driver& driver, const Pairs& pairs, bool writable) {
    std::vector<Placement> placements;
    placements.reserve(pairs.size());
    for (const auto& [va, handle] : pairs) {
        placements.push_back({va, handle, writable});
    }
    driver.map_many(placements);
}

Driver* opened(std::string_view name, int device, std::size_t limit, std::string backing, std::string library) {
    return open_driver(name, device, {limit, std::move(backing), std::move(library)}).release();
}

const char* sharing(const Driver& driver) {
    return driver.sharing() == Sharing::descriptor ? "descriptor" : "handle";
}

void copy_async(Driver& driver, Stream stream, const Entries& entries, std::string_view kind) {
    driver.streams().copy(stream, copy_entries(entries), copy_kind(kind));
}

void zero_async(Driver& driver, Stream stream, const std::vector<std::pair<Address, std::size_t>>& ranges) {
    std::vector<CopyEntry> entries;
    entries.reserve(ranges.size());
    for (const auto& [address, length] : ranges) {
        entries.push_back({address, 0, length});
    }
    driver.streams().zero(stream, entries);
}

// A member function of the driver's streams.
template <auto verb, class... Arguments>
auto on_streams(Driver& driver, Arguments... arguments) {
    return (driver.streams().*verb)(arguments...);
}

// Ends without the GIL: it waits for what is under way.
class BoundCopy {
   public:
    BoundCopy(Driver& driver, const Entries& entries, std::string_view kind, int threads, std::vector<int> cpus)
        : copy_(driver.start_copy(copy_entries(entries), copy_kind(kind), {threads, std::move(cpus), ""})) {}
    BoundCopy(const BoundCopy&) = delete;
    BoundCopy& operator=(const BoundCopy&) = delete;
    ~BoundCopy() {
        const nb::gil_scoped_release released;
        copy_.reset();
    }

    bool wait(std::optional<std::size_t> entries, double timeout_s) {
        const std::size_t total = copy_->entries_total();
        if (entries.value_or(total) > total) {
            throw std::invalid_argument("the copy has only " + std::to_string(total) + " entries");
        }
        return copy_->wait(entries.value_or(total), timeout_s);
    }

    OrderedCopy& copy() { return *copy_; }

   private:
    std::unique_ptr<OrderedCopy> copy_;
};

template <auto property>
auto of_copy(BoundCopy& bound) {
    return (bound.copy().*property)();
}

void bind_ordered_copy(nb::module_& module) {
    nb::class_<BoundCopy>(module, "OrderedCopy", "A copy by a driver, in order; started at once.")
        .def(nb::init<Driver&, const Entries&, std::string_view, int, std::vector<int>>(), "driver"_a, "entries"_a,
             "kind"_a, "threads"_a = 1, "cpus"_a = std::vector<int>{}, nb::keep_alive<1, 2>(), NoGil())
        .def("wait", &BoundCopy::wait, "entries"_a = nb::none(), "timeout_s"_a = 3600.0, NoGil(),
             "Wait until the first `entries` entries are whole; False when time is up or it was cancelled.")
        .def("cancel", &of_copy<&OrderedCopy::cancel>, NoGil(), "Return when nothing is copied any more.")
        .def_prop_ro("done", &of_copy<&OrderedCopy::done>)
        .def_prop_ro("cancelled", &of_copy<&OrderedCopy::cancelled>)
        .def_prop_ro("entries_done", &of_copy<&OrderedCopy::entries_done>)
        .def_prop_ro("bytes_done", &of_copy<&OrderedCopy::bytes_done>)
        .def_prop_ro("bytes_total", &of_copy<&OrderedCopy::bytes_total>)
        .def_prop_ro("seconds", &of_copy<&OrderedCopy::seconds>);
}

void bind_stats(nb::module_& module) {
    nb::class_<DriverStats>(module, "DriverStats", "What one Driver object holds, in bytes and counts.")
        .def_ro("own_bytes", &DriverStats::own_bytes)
        .def_ro("imported_bytes", &DriverStats::imported_bytes)
        .def_ro("mapped_bytes", &DriverStats::mapped_bytes)
        .def_ro("huge_bytes", &DriverStats::huge_bytes)
        .def_ro("handles", &DriverStats::handles)
        .def_ro("reservations", &DriverStats::reservations);
}

void bind_sharing(nb::class_<Driver>& driver) {
    driver.def_prop_ro("sharing", &sharing)
        .def("share_id", &Driver::share_id, NoGil(), "How an exporter names this process in `permit`.")
        .def(
            "permit",
            [](Driver& self, Handle handle, const std::vector<std::int32_t>& ids) { self.permit(handle, ids); },
            "handle"_a, "share_ids"_a, NoGil(), "These processes may import an exported chunk from now on.")
        .def("export_handle", &Driver::export_handle, "handle"_a, NoGil(),
             "What another process imports the chunk from; given once.")
        .def("import_handle", &Driver::import_handle, "shareable"_a, "size"_a, NoGil(),
             "Handle of a chunk that another process exported.");
}

void bind_mapping(nb::class_<Driver>& driver) {
    driver
        .def("reserve", &Driver::reserve, "size"_a, "hint"_a = 0, NoGil(),
             "Address of `size` reserved, inaccessible bytes; exactly at `hint` (a multiple of 1 GiB) where not 0.")
        .def("release", &Driver::release, "va"_a, NoGil(), "Give back a reservation in which nothing is mapped.")
        .def("map", &Driver::map, "va"_a, "handle"_a, "writable"_a = true, NoGil(),
             "Map a whole chunk at `va` inside one reservation.")
        .def("unmap", &Driver::unmap, "va"_a, NoGil(), "Take the chunk mapped at `va` away; the range stays reserved.")
        .def("map_many", &map_pairs, "pairs"_a, "writable"_a = true, NoGil(),
             "`map` for each `(va, handle)`, all or none.")
        .def(
            "unmap_many", [](Driver& self, const std::vector<Address>& vas) { self.unmap_many(vas); }, "vas"_a,
            NoGil(), "`unmap` for each address, all or none.");
}

void bind_streams(nb::class_<Driver>& driver) {
    driver
        .def("create_stream", &on_streams<&Streams::create_stream>, NoGil(), "Work put on a stream is done in order.")
        .def("destroy_stream", &on_streams<&Streams::destroy_stream, Stream>, "stream"_a, NoGil(),
             "Wait for what is on it, then forget it.")
        .def("copy_async", &copy_async, "stream"_a, "entries"_a, "kind"_a, NoGil(),
             "Put a copy of every (destination, source, length) on the stream.")
        .def("zero_async", &zero_async, "stream"_a, "ranges"_a, NoGil(),
             "Put zeros into every (address, length) of the device, by the stream.")
        .def("wait_stream", &on_streams<&Streams::wait_stream, Stream, double>, "stream"_a, "timeout_s"_a = 3600.0,
             NoGil(), "Wait until all that is on it now is done; False when time is up.")
        .def("create_event", &on_streams<&Streams::create_event>, NoGil(), "A point in the work of a stream.")
        .def("destroy_event", &on_streams<&Streams::destroy_event, Event>, "event"_a, NoGil(), "Forget an event.")
        .def("record", &on_streams<&Streams::record, Event, Stream>, "event"_a, "stream"_a, NoGil(),
             "The event is the point behind what is on the stream now.")
        .def("stream_wait", &on_streams<&Streams::stream_wait, Stream, Event>, "stream"_a, "event"_a, NoGil(),
             "What is put on the stream from now on waits for the event.")
        .def("event_done", &on_streams<&Streams::event_done, Event>, "event"_a, NoGil(), "Whether it was reached.")
        .def("wait_event", &on_streams<&Streams::wait_event, Event, double>, "event"_a, "timeout_s"_a = 3600.0,
             NoGil(), "Wait until it is reached; False when time is up.")
        .def("elapsed", &on_streams<&Streams::elapsed, Event, Event>, "start"_a, "end"_a, NoGil(),
             "Seconds between two events that were reached.");
}

}  // namespace

void bind_driver(nb::module_& module) {
    bind_errors(module);
    bind_stats(module);
    nb::class_<Driver> driver(module, "Driver", "Physical chunks and the addresses they are mapped at. Thread-safe.");
    driver.def_prop_ro("name", &Driver::name)
        .def_prop_ro("device", &Driver::device)
        .def_prop_ro("granularity", &Driver::granularity)
        .def_prop_ro("huge", &Driver::huge)
        .def_prop_ro("backing", &Driver::backing)
        .def("create", &Driver::create, "size"_a, NoGil(), "Handle of a new chunk, populated and zero.")
        .def("destroy", &Driver::destroy, "handle"_a, NoGil(), "Forget a handle that is not mapped.")
        .def(
            "wipe", [](Driver& self, const std::vector<Handle>& handles) { self.wipe(handles); }, "handles"_a, NoGil(),
            "Make own chunks zero again.")
        .def("pin", &Driver::pin, "size"_a, NoGil(), "Address of new host memory that the device copies at full speed.")
        .def("unpin", &Driver::unpin, "base"_a, NoGil(), "Free what `pin` gave.")
        .def("register_host", &Driver::register_host, "base"_a, "size"_a, NoGil(),
             "Let the device copy memory that is there already at full speed.")
        .def("unregister_host", &Driver::unregister_host, "base"_a, NoGil(), "The reverse.")
        .def("free_bytes", &Driver::free_bytes, NoGil(), "Bytes that `create` may still take.")
        .def("stats", &Driver::stats, NoGil());
    bind_sharing(driver);
    bind_mapping(driver);
    bind_streams(driver);
    bind_ordered_copy(module);
    module.def("open_driver", &opened, "name"_a, "device"_a = 0, "limit"_a = 0, "backing"_a = "auto",
               "library"_a = "", nb::rv_policy::take_ownership, NoGil(), "Open a driver by name; raises DriverError.");
    module.def("wipe_file", &wipe_file, "descriptor"_a, "size"_a, NoGil(),
               "Make a host chunk zero whose creator is gone.");
    module.def(
        "layouts",
        [] {
            nb::dict table;
            for (const auto& [name, value] : layouts()) {
                table[name.c_str()] = value;
            }
            return table;
        },
        "Sizes, offsets and values of the vendors' structures and enumerations as declared here.");
}

}  // namespace vnpu
