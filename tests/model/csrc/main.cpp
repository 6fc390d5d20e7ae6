// token_model [--accept FILE] [key=value ...]: explores, or checks a trace; one JSON object on standard output.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <iostream>

#include "explore.h"

namespace {

using token::Setting;
using Set = std::function<void(Setting&, int)>;

const std::map<std::string, Set>& options() {
    static const std::map<std::string, Set> all = {
        {"engines", [](Setting& s, int v) { s.engines = v; }},
        {"devices", [](Setting& s, int v) { s.devices = v; }},
        {"capacity", [](Setting& s, int v) { s.capacity = v; }},
        {"lag", [](Setting& s, int v) { s.lag = v; }},
        {"gang", [](Setting& s, int v) { s.gang = v; }},
        {"residents", [](Setting& s, int v) { s.residents = v; }},
        {"wanted", [](Setting& s, int v) { s.wanted = v; }},
        {"registered", [](Setting& s, int v) { s.registered = v; }},
        {"most", [](Setting& s, int v) { s.most = static_cast<std::size_t>(v); }},
        {"lease", [](Setting& s, int v) { s.faults.lease = static_cast<token::u8>(v); }},
        {"crash", [](Setting& s, int v) { s.faults.crash = static_cast<token::u8>(v); }},
        {"hang", [](Setting& s, int v) { s.faults.hang = static_cast<token::u8>(v); }},
        {"daemon", [](Setting& s, int v) { s.faults.daemon = static_cast<token::u8>(v); }},
        {"leader", [](Setting& s, int v) { s.faults.leader = static_cast<token::u8>(v); }},
        {"loss", [](Setting& s, int v) { s.faults.loss = static_cast<token::u8>(v); }},
        {"demand", [](Setting& s, int v) { s.faults.demand = static_cast<token::u8>(v); }},
        {"impatience", [](Setting& s, int v) { s.faults.impatience = static_cast<token::u8>(v); }},
        {"rule_leave", [](Setting& s, int v) { s.rules.leave = v; }},
        {"rule_seat", [](Setting& s, int v) { s.rules.seat = v; }},
        {"rule_closed", [](Setting& s, int v) { s.rules.closed = v; }},
        {"rule_persist_owners", [](Setting& s, int v) { s.rules.persist_owners = v; }},
        {"rule_persist_open", [](Setting& s, int v) { s.rules.persist_open = v; }},
        {"rule_reclaim", [](Setting& s, int v) { s.rules.reclaim = v; }},
        {"rule_last_fence", [](Setting& s, int v) { s.rules.last_fence = v; }},
        {"rule_epoch", [](Setting& s, int v) { s.rules.epoch = v; }},
        {"rule_close_unentered", [](Setting& s, int v) { s.rules.close_unentered = v; }},
        {"rule_keep_pages", [](Setting& s, int v) { s.rules.keep_pages = v; }},
    };
    return all;
}

bool read(const char* argument, Setting& setting) {
    const char* equals = std::strchr(argument, '=');
    if (!equals) return false;
    auto found = options().find(std::string(argument, equals));
    if (found == options().end()) return false;
    found->second(setting, std::atoi(equals + 1));
    return true;
}

void print(const token::History& history) {
    std::cout << "[";
    for (std::size_t i = 0; i < history.size(); i++) std::cout << (i ? ", \"" : "\"") << history[i] << "\"";
    std::cout << "]";
}

void print(const token::Findings& found) {
    std::cout << "{\"states\": " << found.states << ", \"exhausted\": " << (found.exhausted ? "true" : "false")
              << ", \"wedged\": " << found.wedged << ", \"wedge\": ";
    print(found.wedge);
    std::cout << ", \"broken\": {";
    const char* comma = "";
    for (const auto& [what, history] : found.broken) {
        std::cout << comma << "\"" << what << "\": ";
        print(history);
        comma = ", ";
    }
    std::cout << "}}\n";
}

int accept(const char* path, const Setting& setting) {
    std::ifstream file(path);
    token::History trace;
    for (std::string line; std::getline(file, line);) trace.push_back(line);
    std::size_t fits = token::accepted(setting, trace);
    std::cout << "{\"lines\": " << trace.size() << ", \"accepted\": " << fits << "}\n";
    return 0;
}

}  // namespace

int main(int count, char** arguments) {
    Setting setting;
    const char* trace = nullptr;
    for (int i = 1; i < count; i++) {
        if (!std::strcmp(arguments[i], "--accept") && i + 1 < count) {
            trace = arguments[++i];
        } else if (!read(arguments[i], setting)) {
            std::fprintf(stderr, "token_model: no option %s\n", arguments[i]);
            return 2;
        }
    }
    if (trace) return accept(trace, setting);
    print(token::explore(setting));
    return 0;
}
