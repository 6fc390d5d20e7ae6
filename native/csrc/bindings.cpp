// The Python module `native._native`; its typed face is ../_native.pyi.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <memory>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "arena.h"
#include "bindings.h"
#include "copy.h"
#include "device_allocator.h"
#include "digest.h"
#include "gather.h"
#include "hook.h"
#include "kernels.h"
#include "place.h"
#include "staged.h"
#include "wire.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using vnpu::Entries;
using vnpu::copy_entries;
using NoGil = nb::call_guard<nb::gil_scoped_release>;
using Pairs = std::vector<std::pair<std::uint64_t, std::size_t>>;

// Joins its threads without the GIL: one of them may be at work for a millisecond.
class BoundCopyJob {
   public:
    BoundCopyJob(const Entries& entries, int threads, std::vector<int> cpus, std::string kernel)
        : job_(std::make_unique<vnpu::CopyJob>(copy_entries(entries),
                                               vnpu::CopyOptions{threads, std::move(cpus), std::move(kernel)})) {}
    BoundCopyJob(const BoundCopyJob&) = delete;
    BoundCopyJob& operator=(const BoundCopyJob&) = delete;
    ~BoundCopyJob() {
        const nb::gil_scoped_release released;
        job_.reset();
    }

    bool wait(std::optional<std::size_t> entries, double timeout_s) {
        const std::size_t total = job_->stream().entries_total();
        if (entries.value_or(total) > total) {
            throw std::invalid_argument("the job has only " + std::to_string(total) + " entries");
        }
        return job_->stream().wait(entries.value_or(total), std::chrono::duration<double>(timeout_s));
    }
    void cancel() { job_->cancel(); }
    const vnpu::CopyStream& stream() const { return job_->stream(); }

   private:
    std::unique_ptr<vnpu::CopyJob> job_;
};

double copy(const Entries& entries, int threads, std::vector<int> cpus, std::string kernel) {
    return vnpu::copy(copy_entries(entries), {threads, std::move(cpus), std::move(kernel)});
}

std::vector<std::string> kernel_names() {
    std::vector<std::string> names;
    for (const vnpu::CopyKernel& kernel : vnpu::copy_kernels()) {
        names.emplace_back(kernel.name);
    }
    return names;
}

void bind_copy(nb::module_& module) {
    const auto none = std::vector<int>{};
    module.def("copy", &copy, "entries"_a, "threads"_a = 1, "cpus"_a = none, "kernel"_a = "", NoGil(),
               "Copy every (destination, source, length) past the caches; seconds it took.");
    nb::class_<BoundCopyJob>(module, "CopyJob", "The same copy on background threads, in order; started at once.")
        .def(nb::init<const Entries&, int, std::vector<int>, std::string>(), "entries"_a, "threads"_a = 1,
             "cpus"_a = none, "kernel"_a = "", NoGil())
        .def("wait", &BoundCopyJob::wait, "entries"_a = nb::none(), "timeout_s"_a = 3600.0, NoGil(),
             "Wait until the first `entries` entries are whole; False when time is up or it was cancelled.")
        .def("cancel", &BoundCopyJob::cancel, NoGil(), "Stop after the pieces in flight and wait for the threads.")
        .def_prop_ro("done", [](const BoundCopyJob& job) { return job.stream().done(); })
        .def_prop_ro("cancelled", [](const BoundCopyJob& job) { return job.stream().cancelled(); })
        .def_prop_ro("entries_done", [](const BoundCopyJob& job) { return job.stream().entries_done(); })
        .def_prop_ro("bytes_done", [](const BoundCopyJob& job) { return job.stream().bytes_done(); })
        .def_prop_ro("bytes_total", [](const BoundCopyJob& job) { return job.stream().bytes_total(); })
        .def_prop_ro("seconds", [](const BoundCopyJob& job) { return job.stream().seconds(); });
    module.def("copy_kernels", &kernel_names, "Copy kernels this CPU runs, best first.");
    module.def("cpu_features", &vnpu::cpu_features, "What the dispatch found on this CPU.");
}

using Dims = std::vector<std::tuple<std::size_t, std::size_t, std::size_t>>;
using Boxes = std::vector<std::tuple<std::size_t, std::size_t, std::size_t, Dims>>;

vnpu::PlaceBox place_box(const Boxes::value_type& tuple) {
    const auto& [destination, source, length, dims] = tuple;
    if (dims.size() > vnpu::place_dims) {
        throw std::invalid_argument("a box has at most four loops");
    }
    vnpu::PlaceBox box{destination, source, length, {}};
    for (std::size_t i = 0; i != dims.size(); ++i) {
        const auto& [count, destination_stride, source_stride] = dims[i];
        box.dims[vnpu::place_dims - dims.size() + i] = {count, destination_stride, source_stride};
    }
    return box;
}

// Boxes that were read once: reading them takes as long as copying what a few of them hold, and holds the GIL.
struct BoundBoxes {
    std::vector<vnpu::PlaceBox> boxes;

    explicit BoundBoxes(const Boxes& tuples) {
        boxes.reserve(tuples.size());
        for (const auto& tuple : tuples) {
            boxes.push_back(place_box(tuple));
        }
    }
};

vnpu::Region region(const Pairs::value_type& range) { return {range.first, range.second}; }

std::size_t place(const BoundBoxes& bound, const Pairs::value_type& destination, const Pairs::value_type& source,
                  const std::string& kernel) {
    return vnpu::place(bound.boxes, region(destination), region(source), kernel);
}

std::uint32_t gather(const BoundBoxes& bound, const Pairs::value_type& destination, const Pairs::value_type& source) {
    return vnpu::gather(bound.boxes, region(destination), region(source)).sum;
}

std::uint32_t scatter(const BoundBoxes& bound, const Pairs::value_type& destination, const Pairs::value_type& source) {
    return vnpu::scatter(bound.boxes, region(destination), region(source));
}

void bind_place(nb::module_& module) {
    nb::class_<BoundBoxes>(module, "Boxes", "Strided copies: (destination, source, length, loops) each.")
        .def(nb::init<const Boxes&>(), "boxes"_a);
    module.def("place", &place, "boxes"_a, "destination"_a, "source"_a, "kernel"_a = "", NoGil(),
               "Strided copies between two ranges (address, length); bytes copied.");
    module.def("gather", &gather, "boxes"_a, "destination"_a, "source"_a, NoGil(),
               "The source's rows end to end into a range; their CRC-32C.");
    module.def("scatter", &scatter, "boxes"_a, "destination"_a, "source"_a, NoGil(),
               "A range's first bytes to the destination's rows; their CRC-32C.");
}

std::vector<iovec> rows_of(const Pairs& pairs) {
    std::vector<iovec> rows;
    rows.reserve(pairs.size());
    for (const auto& [address, length] : pairs) {
        rows.push_back({reinterpret_cast<void*>(address), length});
    }
    return rows;
}

std::uint32_t crc32c_rows(const Pairs& rows, std::uint32_t init) { return vnpu::crc32c_rows(rows_of(rows), init); }

int send_rows(int socket, const Pairs& rows, double timeout_s) {
    return vnpu::send_rows(socket, rows_of(rows), timeout_s);
}

std::pair<int, std::uint32_t> receive_rows(int socket, const Pairs& rows, double timeout_s) {
    return vnpu::receive_rows(socket, rows_of(rows), timeout_s);
}

int send_gathered(int socket, const nb::bytes& header, const BoundBoxes& bound, const Pairs::value_type& stage,
                  const Pairs::value_type& source, double timeout_s) {
    std::string sent(header.c_str(), header.size());
    const nb::gil_scoped_release released;
    return vnpu::send_gathered(socket, std::move(sent), bound.boxes, region(stage), region(source), timeout_s);
}

std::pair<int, std::uint32_t> receive_scattered(int socket, const BoundBoxes& bound,
                                                const Pairs::value_type& destination, const Pairs::value_type& stage,
                                                double timeout_s) {
    return vnpu::receive_scattered(socket, bound.boxes, region(destination), region(stage), timeout_s);
}

using Frames = std::vector<std::tuple<nb::bytes, int, std::uint64_t, std::size_t>>;

std::pair<int, std::size_t> send_frames(int socket, const Frames& frames, std::pair<double, double> spacing,
                                        const vnpu::Halt& halt, double timeout_s) {
    std::vector<vnpu::Outgoing> outgoing;
    outgoing.reserve(frames.size());
    for (const auto& [header, file, at, length] : frames) {
        outgoing.push_back({std::string(header.c_str(), header.size()), {file, at, length}});
    }
    const nb::gil_scoped_release released;
    const vnpu::Sent sent = vnpu::send_frames(socket, outgoing, {spacing.first, spacing.second}, halt, timeout_s);
    return {sent.error, sent.frames};
}

nb::tuple receive_frame(int socket, const nb::bytes& due, std::uint64_t address, std::size_t length, double timeout_s) {
    vnpu::Frame came{};
    {
        const std::string_view wanted(due.c_str(), due.size());
        const nb::gil_scoped_release released;
        came = vnpu::receive_frame(socket, wanted, {reinterpret_cast<void*>(address), length}, timeout_s);
    }
    return nb::make_tuple(came.error, nb::bytes(came.header.data(), came.header.size()), came.sum);
}

void bind_wire(nb::module_& module) {
    module.def("crc32c_rows", &crc32c_rows, "rows"_a, "init"_a = 0, NoGil(), "CRC-32C of ranges end to end.");
    module.def("send_rows", &send_rows, "socket"_a, "rows"_a, "timeout_s"_a, NoGil(),
               "Ranges end to end into a stream socket; 0 or an errno.");
    module.def("receive_rows", &receive_rows, "socket"_a, "rows"_a, "timeout_s"_a, NoGil(),
               "The other way round; 0, an errno or -1 (end of stream), and the CRC-32C of what came.");
    module.def("send_gathered", &send_gathered, "socket"_a, "header"_a, "boxes"_a, "stage"_a, "source"_a, "timeout_s"_a,
               "`gather`, then a header with the sum put in, and the rows; 0 or an errno.");
    module.def("receive_scattered", &receive_scattered, "socket"_a, "boxes"_a, "destination"_a, "stage"_a,
               "timeout_s"_a, NoGil(), "The other way round, by `scatter`; as `receive_rows`.");
    nb::class_<vnpu::Halt>(module, "Halt", "Stops who sends, between two frames.")
        .def(nb::init<>())
        .def("set", [](vnpu::Halt& halt) { halt.store(true, std::memory_order_release); })
        .def("clear", [](vnpu::Halt& halt) { halt.store(false, std::memory_order_release); });
    module.def("send_frames", &send_frames, "socket"_a, "frames"_a, "spacing"_a, "halt"_a, "timeout_s"_a,
               "Headers and bodies, each when it is due; 0, an errno or -1 (a file ended), and how many went whole.");
    module.def("receive_frame", &receive_frame, "socket"_a, "due"_a, "address"_a, "length"_a, "timeout_s"_a,
               "A header; where it is `due`, the body too. An error as above, the header, the body's CRC-32C.");
}

std::uint32_t crc32c(std::uint64_t address, std::size_t length, std::uint32_t init, const std::string& kernel) {
    return vnpu::crc32c(reinterpret_cast<const void*>(address), length, init, kernel);
}

std::uint32_t crc32c_bytes(const nb::bytes& data, std::uint32_t init) {
    return vnpu::crc32c(data.c_str(), data.size(), init, "");
}

std::uint32_t crc32c_fold(const std::vector<std::pair<std::uint32_t, std::size_t>>& pairs) {
    std::vector<vnpu::SummedPart> parts;
    parts.reserve(pairs.size());
    for (const auto& [sum, length] : pairs) {
        parts.push_back({sum, length});
    }
    return vnpu::crc32c_fold(parts);
}

std::size_t checked_copies(const std::vector<std::tuple<std::uint64_t, std::uint64_t, std::size_t, std::uint32_t>>& all) {
    std::vector<vnpu::CheckedCopy> copies;
    copies.reserve(all.size());
    for (const auto& [destination, source, length, sum] : all) {
        copies.push_back({reinterpret_cast<void*>(destination), reinterpret_cast<const void*>(source), length, sum});
    }
    return vnpu::checked_copies(copies);
}

std::uint32_t checked_copy(std::uint64_t destination, std::uint64_t source, std::size_t length, std::uint32_t init) {
    return vnpu::checked_copy(reinterpret_cast<void*>(destination), reinterpret_cast<const void*>(source), length, init);
}

std::uint64_t sample_digest(const Pairs& pairs, std::size_t stride, std::size_t width) {
    std::vector<vnpu::Range> ranges;
    ranges.reserve(pairs.size());
    for (const auto& [address, length] : pairs) {
        ranges.push_back({address, length});
    }
    return vnpu::sample_digest(ranges, stride, width);
}

std::vector<std::uint64_t> sample_digests(const std::vector<std::uint64_t>& addresses, std::size_t length) {
    std::vector<std::uint64_t> digests;
    digests.reserve(addresses.size());
    for (const std::uint64_t address : addresses) {
        const vnpu::Range range{address, length};
        digests.push_back(vnpu::sample_digest({&range, 1}, vnpu::sample_stride, vnpu::sample_width));
    }
    return digests;
}

void bind_digest(nb::module_& module) {
    module.def("crc32c", &crc32c, "address"_a, "length"_a, "init"_a = 0, "kernel"_a = "", NoGil(),
               "CRC-32C of a range; `init` continues an earlier one.");
    module.def("checked_copy", &checked_copy, "destination"_a, "source"_a, "length"_a, "init"_a = 0, NoGil(),
               "Copy past the caches; CRC-32C of what was read.");
    module.def("checked_copies", &checked_copies, "copies"_a, NoGil(),
               "Such copies (destination, source, length, CRC-32C) in turn; how many were right before one was not.");
    module.def("crc32c_bytes", &crc32c_bytes, "data"_a, "init"_a = 0, "CRC-32C of bytes.");
    module.def("crc32c_fold", &crc32c_fold, "parts"_a, "CRC-32C of parts (CRC-32C, length) end to end.");
    module.def("sample_digest", &sample_digest, "ranges"_a, "stride"_a = vnpu::sample_stride, "width"_a = vnpu::sample_width, NoGil(),
               "64-bit digest of samples of the ranges: the canary of a restore.");
    module.def("sample_digests", &sample_digests, "addresses"_a, "length"_a, NoGil(),
               "`sample_digest` of each of many ranges of one length.");
}

// Python holds the arena through this, so that an arena which the hook keeps for ever keeps no Python object.
struct BoundArena {
    std::shared_ptr<vnpu::Arena> arena;

    BoundArena(std::uintptr_t base, std::size_t reserved, std::size_t chunk, std::size_t capacity)
        : arena(std::make_shared<vnpu::Arena>(base, reserved, chunk, capacity)) {}

    std::uintptr_t allocate(std::size_t size, std::size_t alignment) const {
        if (size == 0 || alignment == 0 || (alignment & (alignment - 1)) != 0) {
            throw std::invalid_argument("a block needs a positive size and an alignment that is a power of two");
        }
        const std::uintptr_t block = arena->allocate(size, alignment);
        if (block == 0) {
            throw std::bad_alloc();
        }
        return block;
    }

    void free(std::uintptr_t address) const {
        if (!arena->free(address)) {
            throw std::invalid_argument("no live block of the arena starts at " + std::to_string(address));
        }
    }
};

template <auto list>
Pairs extent_pairs(const BoundArena& bound) {
    Pairs pairs;
    for (const vnpu::Extent& extent : (bound.arena.get()->*list)()) {
        pairs.emplace_back(extent.offset, extent.length);
    }
    return pairs;
}

template <auto property>
auto get(const BoundArena& bound) {
    return (bound.arena.get()->*property)();
}

void bind_arena(nb::module_& module) {
    using vnpu::Arena;
    nb::class_<BoundArena>(module, "Arena", "First-fit allocator over one reservation whose first bytes are mapped.")
        .def(nb::init<std::uintptr_t, std::size_t, std::size_t, std::size_t>(), "base"_a, "reserved"_a,
             "chunk"_a = 2097152, "capacity"_a = 0)
        .def("grow", [](const BoundArena& bound, std::size_t capacity) { bound.arena->grow(capacity); }, "capacity"_a,
             "So many bytes from `base` are mapped now.")
        .def("trim", [](const BoundArena& bound) { return bound.arena->trim(); },
             "Shrink `capacity` to the chunks below `top` and return it.")
        .def("allocate", &BoundArena::allocate, "size"_a, "alignment"_a = 4096, "Address of a block of whole pages.")
        .def("free", &BoundArena::free, "address"_a, "Give a block back, by its address.")
        .def("blocks", &extent_pairs<&Arena::blocks>, "Live blocks as (offset, length), by offset.")
        .def("extents", &extent_pairs<&Arena::extents>, "Live blocks with neighbours merged, by offset.")
        .def("chunks_in_use", &get<&Arena::chunks_in_use>, "Indices of the chunks that hold live bytes.")
        .def_prop_ro("base", &get<&Arena::base>)
        .def_prop_ro("reserved", &get<&Arena::reserved>)
        .def_prop_ro("chunk", &get<&Arena::chunk>)
        .def_prop_ro("capacity", &get<&Arena::capacity>)
        .def_prop_ro("top", &get<&Arena::top>)
        .def_prop_ro("live_bytes", &get<&Arena::live_bytes>)
        .def_prop_ro("live_blocks", &get<&Arena::live_blocks>)
        .def_prop_ro("peak_bytes", &get<&Arena::peak_bytes>)
        .def_prop_ro("spilled_bytes", &get<&Arena::spilled_bytes>)
        .def_prop_ro("spilled_blocks", &get<&Arena::spilled_blocks>);
}

std::vector<std::pair<std::string, std::size_t>> hooked_libraries() {
    std::vector<std::pair<std::string, std::size_t>> libraries;
    for (const vnpu::HookedLibrary& library : vnpu::hooked_libraries()) {
        libraries.emplace_back(library.path, library.slots);
    }
    return libraries;
}

void activate(const BoundArena* bound, std::size_t min_block) {
    vnpu::activate(bound != nullptr ? bound->arena : nullptr, min_block);
}

void serve_device(int device, const BoundArena* bound) {
    vnpu::serve_device(device, bound != nullptr ? bound->arena : nullptr);
}

void bind_hook(nb::module_& module) {
    module.def("serve_device", &serve_device, "device"_a, "arena"_a.none(),
               "`vnpu_malloc` for `device` takes from `arena` from now on; None: it has nothing.");
    module.def("install_hook", &vnpu::install_hook, "Redirect the libraries loaded now; number of redirected slots.");
    module.def("hooked_libraries", &hooked_libraries, "Path and number of redirected slots of each library.");
    module.def("activate", &activate, "arena"_a.none(), "min_block"_a = 65536,
               "Hooked allocations of at least `min_block` bytes come from `arena` from now on; None: from libc.");
}

}  // namespace

NB_MODULE(_native, module) {
    // Engines keep drivers and arenas in module globals until the process ends; that is no leak.
    nb::set_leak_warnings(false);
    vnpu::bind_driver(module);
    bind_copy(module);
    bind_place(module);
    bind_wire(module);
    bind_digest(module);
    bind_arena(module);
    bind_hook(module);
}
