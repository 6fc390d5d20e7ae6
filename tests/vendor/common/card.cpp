#include "card.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <mutex>

namespace simulator {

namespace {

std::mutex threads;  // file locks are between processes only

[[noreturn]] void give_up(const std::string& what) {
    std::perror(("simulated card: " + what).c_str());
    std::abort();
}

std::uint64_t number(const char* name, std::uint64_t otherwise) {
    const char* text = std::getenv(name);
    return text != nullptr && *text != 0 ? std::strtoull(text, nullptr, 10) : otherwise;
}

// A lock of the process, not of the descriptor: it ends with the process and a forked child does not have it.
bool lock_byte(int fd, off_t byte, bool wait) {
    struct flock lock{};
    lock.l_type = F_WRLCK;
    lock.l_whence = SEEK_SET;
    lock.l_start = byte;
    lock.l_len = 1;
    return ::fcntl(fd, wait ? F_SETLKW : F_SETLK, &lock) == 0;
}

void unlock_byte(int fd, off_t byte) {
    struct flock lock{};
    lock.l_type = F_UNLCK;
    lock.l_whence = SEEK_SET;
    lock.l_start = byte;
    lock.l_len = 1;
    ::fcntl(fd, F_SETLK, &lock);
}

bool lock_is_free(int fd, off_t byte) {
    struct flock lock{};
    lock.l_type = F_WRLCK;
    lock.l_whence = SEEK_SET;
    lock.l_start = byte;
    lock.l_len = 1;
    return ::fcntl(fd, F_GETLK, &lock) == 0 && lock.l_type == F_UNLCK;
}

int open_file(const std::string& path) {
    const int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0) {
        give_up("cannot open " + path);
    }
    return fd;
}

}  // namespace

Card* Card::get() {
    static Card* const card = [] {
        const char* folder = std::getenv("SIMULATED_CARD");
        return folder != nullptr && *folder != 0 ? new Card(std::string(folder) + "/" + vendor_name) : nullptr;
    }();
    return card;
}

Card::Card(std::string folder) : folder_(std::move(folder)), pid_(::getpid()) {
    ::mkdir(folder_.c_str(), 0700);
    lock_fd_ = open_file(folder_ + "/lock");
    life_fd_ = open_file(folder_ + "/processes");
    lock_byte(lock_fd_, 0, true);
    open_book();
    take_slot();
    unlock_byte(lock_fd_, 0);
}

void Card::open_book() {
    const int fd = open_file(folder_ + "/card");
    if (::ftruncate(fd, sizeof(Book)) != 0) {
        give_up("cannot size the book");
    }
    void* const at = ::mmap(nullptr, sizeof(Book), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (at == MAP_FAILED) {
        give_up("cannot map the book");
    }
    ::close(fd);
    book_ = static_cast<Book*>(at);
    if (book_->next_id == 0) {
        book_->capacity = number("SIMULATED_CAPACITY", std::uint64_t{1} << 30);
        book_->devices = static_cast<std::int32_t>(number("SIMULATED_DEVICES", 2));
        book_->max_streams = static_cast<std::int32_t>(number("SIMULATED_STREAMS", 1984));
        book_->next_id = 1;
    }
}

void Card::take_slot() {
    for (int slot = 0; slot < max_processes; ++slot) {
        if (lock_byte(life_fd_, slot, false)) {
            slot_ = slot;
            for (Reference& one : book_->references) {  // of a dead predecessor in this place
                if (one.chunk != 0 && one.slot == slot) {
                    one = Reference{};
                }
            }
            book_->processes[slot] = ProcessRecord{pid_, {}};
            return;
        }
    }
    give_up("too many processes");
}

bool Card::forked() const { return ::getpid() != pid_; }

std::string Card::chunk_path(std::uint64_t id) const { return folder_ + "/chunk-" + std::to_string(id); }

Card::Lock::Lock(Card& card) : card_(card) {
    threads.lock();
    lock_byte(card_.lock_fd_, 0, true);
    card_.bury_the_dead();
    card_.forget_unused();
}

Card::Lock::~Lock() {
    unlock_byte(card_.lock_fd_, 0);
    threads.unlock();
}

ChunkRecord* Card::find(const std::function<bool(const ChunkRecord&)>& wanted) {
    for (ChunkRecord& chunk : book_->chunks) {
        if (chunk.id != 0 && wanted(chunk)) {
            return &chunk;
        }
    }
    return nullptr;
}

Reference& Card::reference(std::uint64_t chunk) {
    Reference* place = nullptr;
    for (Reference& one : book_->references) {
        if (one.chunk == chunk && one.slot == slot_) {
            return one;
        }
        if (one.chunk == 0 && place == nullptr) {
            place = &one;
        }
    }
    if (place == nullptr) {
        give_up("too many references");
    }
    *place = Reference{chunk, slot_, 0, 0, 0};
    return *place;
}

std::uint64_t Card::used(int device) const {
    std::uint64_t bytes = 0;
    for (const ChunkRecord& chunk : book_->chunks) {
        if (chunk.id != 0 && chunk.device == device) {
            bytes += (chunk.size + granule - 1) / granule * granule;
        }
    }
    return bytes;
}

int Card::streams(int device) const {
    int count = 0;
    for (const ProcessRecord& process : book_->processes) {
        count += process.pid != 0 ? process.streams[device] : 0;
    }
    return count;
}

void Card::bury_the_dead() {
    for (int slot = 0; slot < max_processes; ++slot) {
        ProcessRecord& process = book_->processes[slot];
        if (process.pid == 0 || slot == slot_ || !lock_is_free(life_fd_, slot)) {
            continue;
        }
        for (Reference& one : book_->references) {
            if (one.chunk != 0 && one.slot == slot) {
                one = Reference{};
            }
        }
        process = ProcessRecord{};
    }
}

// Descriptors that were exported carry a shared lock, which goes where they go: sent, duplicated, or closed by a kill.
bool Card::exported_by_descriptor(const ChunkRecord& chunk) const {
    const int fd = ::open(chunk_path(chunk.id).c_str(), O_RDWR | O_CLOEXEC);
    if (fd < 0) {
        return false;
    }
    const bool shared = ::flock(fd, LOCK_EX | LOCK_NB) != 0;
    ::close(fd);
    return shared;
}

void Card::forget_unused() {
    for (ChunkRecord& chunk : book_->chunks) {
        if (chunk.id == 0) {
            continue;
        }
        bool referred = false;
        for (Reference& one : book_->references) {
            if (one.chunk != chunk.id) {
                continue;
            }
            if (one.handles == 0 && one.mappings == 0) {
                one = Reference{};
            } else {
                referred = true;
            }
        }
        if (!referred && !exported_by_descriptor(chunk)) {
            ::unlink(chunk_path(chunk.id).c_str());
            chunk = ChunkRecord{};
            book_->freed += 1;
        }
    }
}

}  // namespace simulator
