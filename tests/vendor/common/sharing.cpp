// How a chunk crosses to another process: by a number with a white-list, or by a descriptor.
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>

#include "space.h"

namespace simulator {

Result Space::export_number(std::uint64_t handle, bool any_pid, std::uint64_t* number) {
    const std::lock_guard guard(mutex_);
    Handle* const out = find(handle);
    if (out == nullptr) {
        return refuse(Fault::invalid_handle, "no such handle in this process");
    }
    if (!out->own) {
        return refuse(Fault::refused_below, "an imported handle is not exported: only the process that made it does");
    }
    if (out->exported) {
        return refuse(Fault::refused_below, "the handle is exported already: handle and number are one to one");
    }
    return card_.locked([&](Book&) {
        ChunkRecord* const record = card_.find([&](const ChunkRecord& one) { return one.id == out->chunk->id; });
        record->shareable = (record->id << 24) ^ 0x5eed00c0ffee;
        record->exporter = card_.slot();
        record->any_pid = any_pid ? 1 : 0;
        out->exported = true;
        *number = record->shareable;
        return Result{};
    });
}

Result Space::allow(std::uint64_t number, std::span<const std::int32_t> pids) {
    return card_.locked([&](Book&) {
        ChunkRecord* const record = card_.find([&](const ChunkRecord& one) { return one.shareable == number; });
        if (number == 0 || record == nullptr || record->exporter != card_.slot()) {
            return refuse(Fault::invalid_value, "this process exported no such number");
        }
        if (pids.empty() || record->pid_count + pids.size() > max_pids) {
            return refuse(Fault::invalid_value, "no pid, or more than the white-list holds");
        }
        for (const std::int32_t pid : pids) {
            record->pids[record->pid_count++] = pid;
        }
        return Result{};
    });
}

Result Space::import_number(std::uint64_t number, int device, std::int32_t bare_pid, std::uint64_t* handle) {
    const std::lock_guard guard(mutex_);
    return card_.locked([&](Book&) {
        const ChunkRecord* const record = card_.find([&](const ChunkRecord& one) { return one.shareable == number; });
        if (number == 0 || record == nullptr) {
            return refuse(Fault::refused_below, "no memory that exists was exported under that number");
        }
        if (rules_.import_once && record->exporter == card_.slot()) {
            return refuse(Fault::refused_below, "export and import of one number in one process");
        }
        for (const auto& [name, known] : handles_) {
            if (rules_.import_once && known.number == number) {
                return refuse(Fault::refused_below, "the number is imported already: handle and number are one to one");
            }
        }
        bool listed = record->any_pid != 0;
        for (std::uint32_t i = 0; i < record->pid_count; ++i) {
            listed = listed || record->pids[i] == bare_pid;
        }
        if (!listed) {
            return refuse(Fault::not_permitted, "this process is not on the white-list of that number");
        }
        if (record->device != device) {
            return refuse(Fault::invalid_device, "the memory lies on another device and no peer access is enabled");
        }
        const auto chunk = attach(*record);
        *handle = keep(chunk, false, number);
        tell_card_locked(*chunk, false);
        return Result{};
    });
}

Result Space::export_descriptor(std::uint64_t handle, int* fd) {
    const std::lock_guard guard(mutex_);
    Handle* const out = find(handle);
    if (out == nullptr) {
        return refuse(Fault::invalid_value, "no such handle in this process");
    }
    if (!out->chunk->exportable) {
        return refuse(Fault::not_supported, "the chunk was not created to be exported as a descriptor");
    }
    return card_.locked([&](Book&) {
        const int opened = ::open(card_.chunk_path(out->chunk->id).c_str(), O_RDWR | O_CLOEXEC);
        if (opened < 0 || ::flock(opened, LOCK_SH) != 0) {
            return refuse(Fault::system, "no descriptor is left");
        }
        *fd = opened;
        return Result{};
    });
}

Result Space::import_descriptor(int fd, std::uint64_t* handle) {
    const std::lock_guard guard(mutex_);
    struct stat file{};
    if (::fstat(fd, &file) != 0) {
        return refuse(Fault::invalid_value, "no such descriptor");
    }
    return card_.locked([&](Book&) {
        struct stat named{};
        const ChunkRecord* const record = card_.find([&](const ChunkRecord& one) { return one.inode == file.st_ino; });
        if (record == nullptr || ::stat(card_.chunk_path(record->id).c_str(), &named) != 0 ||
            named.st_dev != file.st_dev) {
            return refuse(Fault::invalid_value, "the descriptor is of no chunk of this card");
        }
        const auto chunk = attach(*record);
        *handle = keep(chunk, false, 0);
        tell_card_locked(*chunk, false);
        return Result{};
    });
}

}  // namespace simulator
