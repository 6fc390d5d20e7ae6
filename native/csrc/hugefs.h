// A private tmpfs whose files lie on huge pages whatever the system's `shmem_enabled` says, and that no path leads to.
#pragma once

#include <cstddef>
#include <string>

#include "fd.h"

namespace vnpu {

// The file system's root directory; `limit` bytes at most, 0: no limit. Needs fsopen(2) (Linux 5.2) and CAP_SYS_ADMIN,
// here or in a user namespace made for it. Throws DriverError where neither is to be had.
Fd mount_huge_tmpfs(std::size_t limit);

// A folder of a tmpfs that somebody mounted for us: with huge=always, where huge pages are wanted. Needs no privilege:
// what containers use. Throws DriverError where it is none.
Fd open_tmpfs(const std::string& path);

// An unnamed file of `size` bytes there.
Fd unnamed_file(const Fd& directory, std::size_t size);

// The fallback: an unnamed file on the kernel's own shared memory, huge only if the system's settings say so.
Fd memory_file(std::size_t size);

}  // namespace vnpu
