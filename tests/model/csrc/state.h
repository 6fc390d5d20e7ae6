// What the checker explores: one etcd, its watchers with views that lag, and the processes. See ../README.md.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace token {

using u8 = std::uint8_t;

constexpr int kEngines = 3;   // at most
constexpr int kDevices = 2;   // at most
constexpr int kHistory = 12;  // revisions between the newest and what the slowest watcher has seen, at most
constexpr u8 kNobody = 255;

enum Order : u8 { kNone, kOffload, kRestore, kReclaim };
enum Phase : u8 { kAbsent, kOffloaded, kResident, kMixed };  // mixed: some pages, or an operation is open
enum Step : u8 { kIdle, kEntering, kWorking, kLeaving, kAnswering };

// ---- etcd as of one revision. Revisions are small numbers, 0 stands for "no such key".

struct Token {
    u8 revision, holder, lease, order;
};

struct Seat {
    u8 revision, holder, order;
};

struct DeviceKey {
    u8 present, closed, owners;
};

struct EngineKeys {
    u8 spec;  // which lease of the engine it is on
    u8 phase;
    u8 answered;  // the fence under which the phase was reached
};

struct Snapshot {
    u8 revision, epoch;
    Token token[kDevices];
    Seat seat[kDevices];
    DeviceKey device[kDevices];
    EngineKeys engine[kEngines];
};

// ---- processes. Sets of engines or devices are bit masks.

struct Engine {
    u8 alive, hung, leases, has_lease;
    u8 step, order, fence, fence_epoch, fence_lease, entered, done, failed, last_fence;
    u8 pages;  // on which devices it maps something
    u8 wanted;
};

struct Daemon {
    u8 epoch, current, highest, open, closed, owners, connected;  // open: engine + 1
};

struct Budget {  // how often each fault may still happen
    u8 lease, crash, hang, daemon, leader, loss, demand, impatience;
};

struct State {
    u8 length;
    Snapshot history[kHistory];
    u8 leader, old_leader;  // positions in `history`; old_leader may be nobody
    u8 daemon_view[kDevices], engine_view[kEngines];
    Engine engine[kEngines];
    Daemon daemon[kDevices];
    u8 store_was_lost, newest;
    Budget left;

    const Snapshot& now() const { return history[length - 1]; }
    Snapshot& push();  // the next revision, a copy of the newest
};

// ---- what is explored

struct Rules {  // PROTOCOL.md's; each can be taken away to see what it is for
    bool leave = true;           // 7, 8: an operation lasts until it is left
    bool seat = true;            // 2: compare with the seat, not with the token
    bool closed = true;          // 3, 4: wait for `closed`, charge `owners`
    bool persist_owners = true;  // 11
    bool persist_open = true;    // 11
    bool reclaim = true;         // 10
    bool last_fence = true;      // 5: it dies with the lease
    bool epoch = true;           // 13
    bool close_unentered = true; // 8: a seat whose token is gone and was never entered
    bool keep_pages = true;      // 9: the end of a lease frees nothing
};

struct Setting {
    int engines = 2, devices = 1, capacity = 1, lag = 4;
    bool gang = false;            // engine 0 spans both devices, 1 and 2 one each
    int residents = 1, wanted = 2;  // masks of engines at the start
    bool registered = true;
    std::size_t most = 20'000'000;
    Budget faults{};
    Rules rules{};

    u8 devices_of(int engine) const;
};

enum class Verb : u8 {
    kLeaderSees, kOldLeaderSees, kDaemonSees, kEngineSees, kOrder, kServes, kRegisters, kReconnects, kTakes, kEnters,
    kIsRefused, kMaps, kIsInterrupted, kIsDenied, kLeaves, kAnswers, kFindsItsAnswer, kLeaseEnds, kFreesTheDead,
    kFreesEarly, kPublishes, kClosesUnentered, kKills, kReclaims, kTurnsEpoch, kCrashes, kHangs, kIsWanted, kRestarts,
    kChanges, kLoses,
};

struct Label {
    Verb verb;
    u8 engine = kNobody, device = kNobody, detail = 0;

    std::string text() const;
};

struct Move {
    State next;
    Label label;
    bool fault;          // not counted on by liveness
    const char* broken;  // what must always hold and does not; null where all is well
};

void canonical(State& state, const Setting& setting);
State first(const Setting& setting);
bool served(const State& state, const Setting& setting);  // what liveness asks for

// Every move that any process, or the world, can make.
std::vector<Move> moves(const State& state, const Setting& setting);

}  // namespace token
