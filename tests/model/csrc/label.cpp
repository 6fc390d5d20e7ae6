// What a move is called: in a history that is printed, and in a trace of the real system that is read.
#include "state.h"

namespace token {
namespace {

const char* orders[] = {"nothing", "offload", "restore", "reclaim"};
const char* phases[] = {"nothing", "offloaded", "resident", "mixed"};

std::string number(u8 n) { return std::to_string(static_cast<int>(n)); }

}  // namespace

std::string Label::text() const {
    std::string e = number(engine), d = number(device);
    switch (verb) {
        case Verb::kLeaderSees: return "the leader sees one revision more";
        case Verb::kOldLeaderSees: return "the old leader sees one revision more";
        case Verb::kDaemonSees: return "daemon " + d + " sees one revision more";
        case Verb::kEngineSees: return "engine " + e + " sees one revision more";
        case Verb::kOrder: return std::string(orders[detail]) + " " + e;
        case Verb::kServes: return "engine " + e + " serves who waited";
        case Verb::kRegisters: return "register " + e;
        case Verb::kReconnects: return "engine " + e + " connects to daemon " + d;
        case Verb::kTakes: return "engine " + e + " takes the token to " + orders[detail];
        case Verb::kEnters: return "engine " + e + " enters at daemon " + d;
        case Verb::kIsRefused: return "daemon " + d + " refuses engine " + e + ": stale";
        case Verb::kMaps: return "engine " + e + (detail == kOffload ? " unmaps" : " maps") + " at daemon " + d;
        case Verb::kIsInterrupted: return "daemon " + d + " refuses engine " + e + " amid its operation";
        case Verb::kIsDenied: return "daemon " + d + " has no pages for engine " + e;
        case Verb::kLeaves: return "engine " + e + " leaves";
        case Verb::kAnswers: return "answer " + e + " " + phases[detail];
        case Verb::kFindsItsAnswer: return "engine " + e + " sees its answer put by a daemon";
        case Verb::kLeaseEnds: return "gone " + e;
        case Verb::kFreesTheDead: return "daemon " + d + " frees what engine " + e + " left when it died";
        case Verb::kFreesEarly: return "daemon " + d + " counts pages of engine " + e + " as free: its lease is gone";
        case Verb::kPublishes:
            return "publish " + d + " owners " + number(detail & 127) + (detail & 128 ? " settled" : " open");
        case Verb::kClosesUnentered: return "daemon " + d + " closes a seat that was never entered";
        case Verb::kKills: return "daemon " + d + " kills engine " + e;
        case Verb::kReclaims: return "daemon " + d + " closes the reclaim of engine " + e;
        case Verb::kTurnsEpoch: return "daemon " + d + " turns to the new epoch";
        case Verb::kCrashes: return "FAULT engine " + e + " dies";
        case Verb::kHangs: return "FAULT engine " + e + " hangs";
        case Verb::kIsWanted: return "somebody wants engine " + e;
        case Verb::kRestarts: return "restart " + d;
        case Verb::kChanges: return "FAULT another leader, which lists now";
        case Verb::kLoses: return "FAULT etcd loses its data";
    }
    return "?";
}

}  // namespace token
