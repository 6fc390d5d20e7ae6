#include "space.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>
#include <iterator>

namespace simulator {

namespace {

constexpr int dirt = 0xa5;  // a card does not clean what it gives

void* pointer(Address at) { return reinterpret_cast<void*>(at); }

Address reserve_at(Address hint, std::size_t size) {
    void* const at = ::mmap(pointer(hint), size, PROT_NONE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);
    return at == MAP_FAILED ? 0 : reinterpret_cast<Address>(at);
}

Address reserve_anywhere(std::size_t size, std::size_t alignment) {
    const std::size_t room = size + alignment;
    void* const at = ::mmap(nullptr, room, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) {
        return 0;
    }
    const auto from = reinterpret_cast<Address>(at);
    const Address base = (from + alignment - 1) / alignment * alignment;
    if (base != from) {
        ::munmap(at, base - from);
    }
    ::munmap(pointer(base + size), from + room - base - size);
    return base;
}

}  // namespace

Alias::Alias(const std::string& path, std::size_t size) : bytes_(nullptr), size_(size) {
    const int fd = ::open(path.c_str(), O_RDWR | O_CLOEXEC);
    void* const at = fd < 0 ? MAP_FAILED : ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (fd >= 0) {
        ::close(fd);
    }
    if (at != MAP_FAILED) {
        ::madvise(at, size, MADV_DONTFORK);
        bytes_ = static_cast<char*>(at);
    }
}

Alias::~Alias() {
    if (bytes_ != nullptr) {
        ::munmap(bytes_, size_);
    }
}

Result Space::create(std::size_t size, int device, bool exportable, std::uint64_t* handle) {
    const std::lock_guard guard(mutex_);
    return card_.locked([&](Book& book) {
        if (size == 0) {
            return refuse(Fault::invalid_value, "the size is 0");
        }
        const std::size_t charge = (size + granule - 1) / granule * granule;
        if (charge < size || card_.used(device) + charge > book.capacity) {
            return refuse(Fault::out_of_memory, "the device has no room for that chunk");
        }
        ChunkRecord* place = nullptr;
        for (ChunkRecord& one : book.chunks) {
            if (one.id == 0) {
                place = &one;
                break;
            }
        }
        const std::uint64_t id = book.next_id++;
        const int fd = ::open(card_.chunk_path(id).c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
        struct stat file{};
        if (place == nullptr || fd < 0 || ::ftruncate(fd, static_cast<off_t>(charge)) != 0 || ::fstat(fd, &file) != 0) {
            return refuse(Fault::system, "the simulated card cannot make a file for the chunk");
        }
        ::close(fd);
        *place = ChunkRecord{};
        place->id = id;
        place->size = size;
        place->inode = file.st_ino;
        place->device = device;
        auto chunk = attach(*place);
        if (chunk->alias->bytes() == nullptr) {
            return refuse(Fault::system, "the simulated card cannot map the chunk's file");
        }
        std::memset(chunk->alias->bytes(), dirt, size);
        chunk->exportable = exportable;
        *handle = keep(chunk, true, 0);
        tell_card_locked(*chunk, true);
        return Result{};
    });
}

std::shared_ptr<Space::Chunk> Space::attach(const ChunkRecord& record) {
    if (const auto known = chunks_[record.id].lock()) {
        return known;
    }
    auto chunk = std::make_shared<Chunk>(Chunk{record.id, record.size, record.device, true, 0, 0, nullptr});
    chunk->alias = std::make_shared<Alias>(card_.chunk_path(record.id), record.size);
    chunks_[record.id] = chunk;
    return chunk;
}

std::uint64_t Space::keep(std::shared_ptr<Chunk> chunk, bool own, std::uint64_t number) {
    chunk->handles += 1;
    handles_.emplace(next_handle_, Handle{std::move(chunk), own, false, number});
    return next_handle_++;
}

void Space::tell_card_locked(const Chunk& chunk, bool own) {
    Reference& reference = card_.reference(chunk.id);
    reference.own |= own ? 1 : 0;
    reference.handles = chunk.handles;
    reference.mappings = chunk.mappings;
    if (chunk.handles == 0 && chunk.mappings == 0) {
        chunks_.erase(chunk.id);
        card_.forget_unused();
    }
}

void Space::tell_card(const Chunk& chunk, bool own) {
    card_.locked([&](Book&) { tell_card_locked(chunk, own); });
}

Space::Handle* Space::find(std::uint64_t handle) {
    const auto found = handles_.find(handle);
    return found == handles_.end() ? nullptr : &found->second;
}

// aclrtFreePhysical, cuMemRelease: a chunk that is mapped goes when it is unmapped.
Result Space::release(std::uint64_t handle) {
    const std::lock_guard guard(mutex_);
    Handle* const gone = find(handle);
    if (gone == nullptr) {
        return refuse(Fault::invalid_handle, "no such handle in this process");
    }
    const auto chunk = gone->chunk;
    handles_.erase(handle);
    chunk->handles -= 1;
    tell_card(*chunk, false);
    return {};
}

Result Space::reserve(std::size_t size, std::size_t alignment, Address hint, Address* base) {
    const std::lock_guard guard(mutex_);
    if (size == 0) {
        return refuse(Fault::invalid_value, "the size is 0");
    }
    Address at = 0;
    if (hint != 0) {
        at = reserve_at(hint, size);
        if (at == 0 && rules_.hint_is_an_order) {
            return refuse(Fault::refused_below, "the expected address is taken");
        }
    }
    if (at == 0) {
        at = reserve_anywhere(size, alignment > granule ? alignment : granule);
    }
    if (at == 0) {
        return refuse(Fault::out_of_memory, "no address space is left");
    }
    reservations_.emplace(at, size);
    *base = at;
    return {};
}

Result Space::unreserve(Address base, std::optional<std::size_t> size) {
    const std::lock_guard guard(mutex_);
    const auto found = reservations_.find(base);
    if (found == reservations_.end() || (size && *size != found->second)) {
        return refuse(Fault::invalid_value, "no reservation of that size starts there");
    }
    if (!free_of_mappings(base, found->second)) {
        return refuse(Fault::refused_below, "something is mapped in the reservation");
    }
    ::munmap(pointer(base), found->second);
    reservations_.erase(found);
    return {};
}

bool Space::free_of_mappings(Address at, std::size_t size) {
    const auto above = mappings_.lower_bound(at);
    if (above != mappings_.end() && above->first - at < size) {
        return false;
    }
    if (above == mappings_.begin()) {
        return true;
    }
    const auto& [from, below] = *std::prev(above);
    return at - from >= below.chunk->size;
}

bool Space::mixes(const Handle& handle, Address reservation) const {
    for (const auto& [at, mapping] : mappings_) {
        if (mapping.reservation == reservation &&
            (mapping.own != handle.own || mapping.chunk->device != handle.chunk->device)) {
            return true;
        }
    }
    return false;
}

Result Space::map(Address at, std::size_t size, std::size_t offset, std::uint64_t handle) {
    const std::lock_guard guard(mutex_);
    Handle* const placed = find(handle);
    if (placed == nullptr) {
        return refuse(Fault::invalid_handle, "no such handle in this process");
    }
    if (offset != 0 || size != placed->chunk->size) {
        return refuse(Fault::invalid_value, "a chunk is mapped whole: offset 0, its own size");
    }
    if (at % granule != 0 || size % granule != 0) {
        return refuse(Fault::invalid_value, "address and size are multiples of the granularity");
    }
    auto around = reservations_.upper_bound(at);
    if (around == reservations_.begin() || at - (--around)->first + size > around->second) {
        return refuse(Fault::invalid_value, "the range does not lie in one reservation");
    }
    if (!free_of_mappings(at, size)) {
        return refuse(Fault::refused_below, "something is mapped there");
    }
    if (rules_.one_origin_per_reservation && mixes(*placed, around->first)) {
        return refuse(Fault::refused_below, "the reservation holds handles of the other origin or of another device");
    }
    const bool open = rules_.mapped_is_accessible;
    mappings_.emplace(at, Mapping{placed->chunk, around->first, placed->own, open, open});
    placed->chunk->mappings += 1;
    tell_card(*placed->chunk, placed->own);
    return {};
}

void Space::take_away(Address at) {
    const auto found = mappings_.find(at);
    const auto chunk = found->second.chunk;
    mappings_.erase(found);
    chunk->mappings -= 1;
    tell_card(*chunk, false);
}

Result Space::unmap(Address at) {
    const std::lock_guard guard(mutex_);
    if (!mappings_.contains(at)) {
        return refuse(Fault::invalid_value, "no mapping starts there");
    }
    take_away(at);
    return {};
}

// The starts of the mappings that fill the range from end to end; none: they do not.
std::vector<Address> Space::whole_mappings(Address at, std::size_t size) const {
    std::vector<Address> starts;
    Address next = at;
    for (auto one = mappings_.find(at); one != mappings_.end() && one->first == next && next - at < size; ++one) {
        starts.push_back(next);
        next += one->second.chunk->size;
    }
    return next - at == size ? starts : std::vector<Address>{};
}

Result Space::unmap_whole(Address at, std::size_t size) {
    const std::lock_guard guard(mutex_);
    const std::vector<Address> starts = whole_mappings(at, size);
    if (starts.empty()) {
        return refuse(Fault::invalid_value, "the range is not one of whole mappings");
    }
    for (const Address start : starts) {
        take_away(start);
    }
    return {};
}

Result Space::set_access(Address at, std::size_t size, bool readable, bool writable) {
    const std::lock_guard guard(mutex_);
    const std::vector<Address> starts = whole_mappings(at, size);
    if (starts.empty() || (rules_.access_by_mapping && starts.size() != 1)) {
        return refuse(Fault::invalid_value, "the range is not one of whole mappings, or of more than one");
    }
    for (const Address start : starts) {
        mappings_.at(start).readable = readable;
        mappings_.at(start).writable = writable;
    }
    return {};
}

bool Space::is_device(Address at) const {
    const std::lock_guard guard(mutex_);
    auto around = reservations_.upper_bound(at);
    return around != reservations_.begin() && at - (--around)->first < around->second;
}

std::optional<std::vector<Piece>> Space::pieces(Address at, std::size_t length, bool write) const {
    const std::lock_guard guard(mutex_);
    std::vector<Piece> pieces;
    while (length != 0) {
        auto around = mappings_.upper_bound(at);
        if (around == mappings_.begin()) {
            return std::nullopt;
        }
        const auto& [from, mapping] = *--around;
        const std::size_t skipped = at - from;
        if (skipped >= mapping.chunk->size || !mapping.readable || (write && !mapping.writable) ||
            mapping.chunk->alias->bytes() == nullptr) {
            return std::nullopt;
        }
        const std::size_t part = std::min(length, mapping.chunk->size - skipped);
        pieces.push_back({mapping.chunk->alias, mapping.chunk->alias->bytes() + skipped, part});
        at += part;
        length -= part;
    }
    return pieces;
}

void Space::count(std::string& json) const {
    const std::lock_guard guard(mutex_);
    std::size_t mapped = 0;
    std::size_t own = 0;
    std::size_t imported = 0;
    for (const auto& [at, mapping] : mappings_) {
        mapped += mapping.chunk->size;
    }
    for (const auto& [name, handle] : handles_) {
        (handle.own ? own : imported) += handle.chunk->size;
    }
    const auto add = [&](const char* name, std::size_t value) {
        json += std::string("\"") + name + "\": " + std::to_string(value) + ", ";
    };
    add("handles", handles_.size());
    add("own_bytes", own);
    add("imported_bytes", imported);
    add("mappings", mappings_.size());
    add("mapped_bytes", mapped);
    add("reservations", reservations_.size());
}

}  // namespace simulator
