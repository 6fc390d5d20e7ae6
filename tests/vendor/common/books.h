// What a simulated library keeps for its process, and how it shows it.
#pragma once

#include "card.h"
#include "faults.h"
#include "space.h"
#include "streams.h"

namespace simulator {

struct Process {  // never destroyed: streams run until the process ends
    Card& card;
    Space space;
    Streams streams;
    HostMemory host;

    Process(Card& opened, const Rules& rules) : card(opened), space(opened, rules) {}
};

// This process with the rules of the library's vendor; nullptr: there is no card.
Process* process();
extern const Rules vendor_rules;  // defined by each vendor

Result create_stream(Process& self, int device, std::uint64_t* stream);
Result destroy_stream(Process& self, std::uint64_t stream);

}  // namespace simulator
