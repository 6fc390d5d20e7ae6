#pragma once

#include <iosfwd>
#include <map>

#include "state.h"

namespace token {

using History = std::vector<std::string>;

struct Findings {
    std::size_t states = 0, wedged = 0;
    bool exhausted = true;
    std::map<std::string, History> broken;  // what, and the shortest way there
    History wedge;                          // the shortest way into a state from which not everybody can be served
};

// Breadth first through every state that can be reached. Liveness: from each of them, without further faults, a state
// in which everybody is served can be reached (AG EF).
Findings explore(const Setting& setting);

// Whether there is a run whose visible moves are `trace`, in this order; the number of lines that fit.
std::size_t accepted(const Setting& setting, const History& trace);

}  // namespace token
