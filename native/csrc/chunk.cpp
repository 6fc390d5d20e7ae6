#include "chunk.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include <cerrno>
#include <cstdint>
#include <string>
#include <utility>

#include "hugefs.h"
#include "kernels.h"
#include "pages.h"
#include "space.h"

namespace vnpu {

namespace {

// Bytes of the chunk on huge pages, once all of it has pages.
std::size_t populate_chunk(const Fd& file, std::size_t size) {
    const Window window(file, size);
    ::madvise(pointer(window.base()), size, MADV_HUGEPAGE);  // only advice: it helps a memfd where shmem_enabled is "advise"
    const int error = populate(window.base(), size, true);
    if (error == EINVAL) {
        throw errno_error("create", error, "the kernel cannot populate pages", "use Linux 5.14 or newer");
    }
    if (error != 0) {  // EFAULT is how a full file system looks from here
        throw errno_error("create", error == EFAULT ? ENOSPC : error, "no pages for a chunk of " + std::to_string(size),
                          "free memory, or raise the driver's limit");
    }
    return huge_bytes(pointer(window.base()), size);
}

// tmpfs reports the huge page size as its block size for files that it backs with huge pages.
bool is_huge(const struct stat& facts) { return static_cast<std::size_t>(facts.st_blksize) >= huge_page; }

Chunk adopt(Fd file) {
    struct stat facts{};
    if (::fstat(file.get(), &facts) != 0) {
        throw errno_error("import_handle", errno, "cannot stat the descriptor", "pass an open descriptor");
    }
    return {std::move(file), 0, is_huge(facts), {facts.st_dev, facts.st_ino}};
}

void check_shareable(const char* call, int fd, std::size_t size) {
    struct stat facts{};
    struct statfs system{};
    const int flags = ::fcntl(fd, F_GETFL);
    if (flags < 0 || ::fstat(fd, &facts) != 0 || ::fstatfs(fd, &system) != 0) {
        throw errno_error(call, errno, "descriptor " + std::to_string(fd) + " cannot be used",
                          "pass the descriptor that came from export_handle");
    }
    if (!S_ISREG(facts.st_mode) || static_cast<std::uint64_t>(system.f_type) != TMPFS_MAGIC ||
        (flags & O_ACCMODE) == O_WRONLY) {
        throw errno_error(call, EINVAL, "descriptor " + std::to_string(fd) + " is no chunk",
                          "pass the descriptor that came from export_handle");
    }
    if (static_cast<std::uint64_t>(facts.st_size) != size) {
        throw errno_error(call, EINVAL,
                          "the chunk has " + std::to_string(facts.st_size) + " bytes, not " + std::to_string(size),
                          "pass the size it was created with: a chunk is mapped whole");
    }
}

Fd open_directory(const DriverOptions& options) {
    if (options.backing == "memfd") {
        return {};
    }
    if (options.backing.starts_with('/')) {
        return open_tmpfs(options.backing);
    }
    if (options.backing != "auto" && options.backing != "tmpfs") {
        throw errno_error("open_driver", EINVAL, "backing '" + options.backing + "' is unknown",
                          "use auto, tmpfs, memfd, or the absolute path of a folder on a tmpfs");
    }
    try {
        return mount_huge_tmpfs(options.limit);
    } catch (const DriverError&) {
        if (options.backing == "tmpfs") {
            throw;
        }
        return {};
    }
}

}  // namespace

Fd Backing::file(std::size_t size) const { return directory ? unnamed_file(directory, size) : memory_file(size); }

Backing open_backing(const DriverOptions& options) {
    Backing backing{open_directory(options)};
    const Fd probe = backing.file(huge_page);  // takes no page
    struct stat facts{};
    backing.huge = ::fstat(probe.get(), &facts) == 0 && is_huge(facts);
    return backing;
}

void wipe_file(int fd, std::size_t size) {
    check_shareable("wipe_file", fd, size);
    const Fd copy(::fcntl(fd, F_DUPFD_CLOEXEC, 0));
    if (!copy) {
        throw errno_error("wipe_file", errno, "cannot duplicate the descriptor",
                          "raise the limit on open files or use larger chunks");
    }
    wipe_chunk("wipe_file", copy, size);
}

void wipe_chunk(const char* call, const Fd& file, std::size_t size) {
    const Window window(file, size);
    const int error = populate(window.base(), size, true);  // one walk, not a fault for each page
    if (error != 0) {
        throw errno_error(call, error, "the chunk's pages cannot be reached", "free memory, and wipe it again");
    }
    zero(pointer(window.base()), size);
}

Chunk create_chunk(const Backing& backing, std::size_t size) {
    Fd file = backing.file(size);
    const std::size_t on_huge_pages = populate_chunk(file, size);
    Chunk chunk = adopt(std::move(file));
    chunk.huge_bytes = on_huge_pages;
    return chunk;
}

Chunk import_chunk(int fd, std::size_t size) {
    check_shareable("import_handle", fd, size);
    Fd copy(::fcntl(fd, F_DUPFD_CLOEXEC, 0));
    if (!copy) {
        throw errno_error("import_handle", errno, "cannot duplicate the descriptor",
                          "raise the limit on open files or use larger chunks");
    }
    return adopt(std::move(copy));
}

}  // namespace vnpu
