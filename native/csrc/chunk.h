// A host chunk: a file of its own on shared memory, in which every page is there from the start.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <utility>

#include "driver.h"
#include "fd.h"

namespace vnpu {

using Identity = std::pair<dev_t, ino_t>;

struct Chunk {
    Fd file;
    std::size_t huge_bytes = 0;  // of an own chunk, measured
    bool huge_file = false;      // the kernel would use huge pages for this file
    Identity identity{};
};

// Where the files of own chunks come from.
struct Backing {
    Fd directory;       // none: memfd
    bool huge = false;  // the kernel would use huge pages for them

    Fd file(std::size_t size) const;
};

// All throw DriverError.
Backing open_backing(const DriverOptions& options);
Chunk create_chunk(const Backing& backing, std::size_t size);
// The chunk behind a descriptor that stays the caller's; it must be one of `size` bytes. Where the descriptor is
// read-only, the kernel lets it be mapped read-only alone.
Chunk import_chunk(int fd, std::size_t size);
// Zeroes it. `call` is for the error.
void wipe_chunk(const char* call, const Fd& file, std::size_t size);
// The same for a chunk whose creator is gone, by a descriptor that stays the caller's.
void wipe_file(int fd, std::size_t size);

}  // namespace vnpu
