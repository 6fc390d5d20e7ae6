// The parts of the Python module, one file each.
#pragma once

#include <nanobind/nanobind.h>

#include <cstddef>
#include <cstdint>
#include <tuple>
#include <vector>

#include "copy.h"

namespace vnpu {

// As Python gives them: (destination, source, length).
using Entries = std::vector<std::tuple<std::uint64_t, std::uint64_t, std::size_t>>;

std::vector<CopyEntry> copy_entries(const Entries& tuples);

void bind_driver(nanobind::module_& module);

}  // namespace vnpu
