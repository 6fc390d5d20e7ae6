#include "state.h"

#include <cstring>

#include "moves.h"

namespace token {

u8 Setting::devices_of(int engine) const {
    if (devices == 1) return 1;
    if (gang) return engine == 0 ? 3 : bit(engine - 1);
    return bit(engine % devices);
}

Snapshot& State::push() {
    history[length] = history[length - 1];
    length++;
    history[length - 1].revision = ++newest;
    return history[length - 1];
}

u8 phase_of(const Engine& engine, u8 devices) {
    if (engine.pages == devices) return kResident;
    return engine.pages ? kMixed : kOffloaded;
}

void end_lease(State& state, int engine) {
    state.engine[engine].has_lease = 0;
    u8 lease = state.engine[engine].leases;
    Snapshot& now = state.push();
    now.engine[engine] = {};
    for (Token& token : now.token)
        if (token.revision && token.holder == engine && token.lease == lease) token = {};
}

void kill(Engine& engine) {
    engine.alive = engine.hung = engine.wanted = 0;
    engine.step = engine.order = engine.fence = engine.fence_epoch = engine.fence_lease = 0;
    engine.entered = engine.done = engine.failed = engine.last_fence = 0;
}

bool Moves::room() const { return from.length < kHistory && from.length < set.lag + 1; }

namespace {

// I1: at most one open operation a device. I4: mapped bytes never exceed capacity.
const char* broken(const State& state, const Setting& set) {
    for (int d = 0; d < set.devices; d++) {
        int inside = 0, mapped = 0;
        for (int i = 0; i < set.engines; i++) {
            const Engine& engine = state.engine[i];
            bool at_work = engine.step == kWorking || engine.step == kLeaving;
            inside += engine.alive && at_work && (engine.entered & bit(d));
            mapped += (engine.pages >> d) & 1;
        }
        if (inside > 1) return "I1: two engines in an operation on one device";
        if (mapped > set.capacity) return "I4: more is mapped than the device has";
    }
    return nullptr;
}

bool same_for_daemon(const Snapshot& a, const Snapshot& b, int d) {
    return a.token[d].revision == b.token[d].revision && a.seat[d].revision == b.seat[d].revision &&
           a.epoch == b.epoch;
}

u8 token_of(const Snapshot& s, int engine, int d) { return s.token[d].holder == engine ? s.token[d].revision : 0; }

bool same_for_engine(const Snapshot& a, const Snapshot& b, int engine, const Setting& set) {
    for (int d = 0; d < set.devices; d++)
        if ((set.devices_of(engine) & bit(d)) && token_of(a, engine, d) != token_of(b, engine, d)) return false;
    return true;
}

bool watches(const Engine& engine) { return engine.alive && !engine.hung; }

// A revision that changes nothing a watcher reads is as good as seen.
void skip_unseen(State& s, const Setting& set) {
    for (int d = 0; d < set.devices; d++)
        while (s.daemon_view[d] < s.length - 1 &&
               same_for_daemon(s.history[s.daemon_view[d]], s.history[s.daemon_view[d] + 1], d))
            s.daemon_view[d]++;
    for (int i = 0; i < set.engines; i++) {
        if (!watches(s.engine[i])) s.engine_view[i] = s.length - 1;
        while (s.engine_view[i] < s.length - 1 &&
               same_for_engine(s.history[s.engine_view[i]], s.history[s.engine_view[i] + 1], i, set))
            s.engine_view[i]++;
    }
}

void forget_seen(State& s, const Setting& set) {
    int seen = s.leader;
    if (s.old_leader != kNobody && s.old_leader < seen) seen = s.old_leader;
    for (int d = 0; d < set.devices; d++) seen = s.daemon_view[d] < seen ? s.daemon_view[d] : seen;
    for (int i = 0; i < set.engines; i++) seen = s.engine_view[i] < seen ? s.engine_view[i] : seen;
    std::memmove(s.history, s.history + seen, sizeof(Snapshot) * (s.length - seen));
    s.length -= seen;
    s.leader -= seen;
    if (s.old_leader != kNobody) s.old_leader -= seen;
    for (int d = 0; d < set.devices; d++) s.daemon_view[d] -= seen;
    for (int i = 0; i < set.engines; i++) s.engine_view[i] -= seen;
    std::memset(s.history + s.length, 0, sizeof(Snapshot) * (kHistory - s.length));
}

template <class Each>
void each_revision(State& s, Each&& use) {
    for (int i = 0; i < s.length; i++) {
        Snapshot& h = s.history[i];
        use(h.revision);
        for (int d = 0; d < kDevices; d++) {
            use(h.token[d].revision);
            use(h.seat[d].revision);
            use(h.device[d].closed);
        }
        for (EngineKeys& keys : h.engine) use(keys.answered);
    }
    for (Engine& engine : s.engine) {
        use(engine.fence);
        use(engine.last_fence);
    }
    for (Daemon& daemon : s.daemon) {
        use(daemon.current);
        use(daemon.highest);
        use(daemon.closed);
    }
}

// Only the order of revisions matters: numbering them densely makes states equal that differ in nothing else. Across a
// loss of the store they start again and are not comparable, so then they stay as they are.
void renumber(State& s) {
    if (s.store_was_lost || s.left.loss) return;
    bool used[256] = {};
    u8 rank[256] = {};
    each_revision(s, [&](u8& r) { used[r] = true; });
    u8 next = 0;
    for (int r = 1; r < 256; r++)
        if (used[r]) rank[r] = ++next;
    each_revision(s, [&](u8& r) { r = rank[r]; });
    s.newest = next;
}

}  // namespace

void canonical(State& state, const Setting& setting) {
    skip_unseen(state, setting);
    forget_seen(state, setting);
    renumber(state);
}

void Moves::add(State next, Label label, bool fault, const char* wrong) {
    if (!wrong) wrong = broken(next, set);
    canonical(next, set);
    out_.push_back({next, label, fault, wrong});
}

State first(const Setting& set) {
    State s;
    std::memset(static_cast<void*>(&s), 0, sizeof s);
    s.length = s.newest = 1;
    s.old_leader = kNobody;
    s.left = set.faults;
    Snapshot& now = s.history[0];
    now.revision = 1;
    for (int i = 0; i < set.engines; i++) {
        Engine& engine = s.engine[i];
        engine.alive = 1;
        engine.wanted = set.wanted >> i & 1;
        if (set.residents >> i & 1) engine.pages = set.devices_of(i);
        if (!set.registered) continue;
        engine.leases = engine.has_lease = now.engine[i].spec = 1;
        now.engine[i].phase = phase_of(engine, set.devices_of(i));
    }
    for (int d = 0; d < set.devices; d++) {
        Daemon& daemon = s.daemon[d];
        daemon.connected = bit(kEngines) - 1;
        for (int i = 0; i < set.engines; i++)
            if (s.engine[i].pages & bit(d)) daemon.owners |= bit(i);
        now.device[d] = {1, 0, daemon.owners};
    }
    canonical(s, set);
    return s;
}

bool served(const State& s, const Setting& set) {
    for (int i = 0; i < set.engines; i++) {
        const Engine& engine = s.engine[i];
        if (!engine.alive && (engine.pages || engine.has_lease)) return false;
        if (watches(engine) && (engine.wanted || !engine.has_lease || engine.step != kIdle)) return false;
    }
    for (int d = 0; d < set.devices; d++)
        if (s.daemon[d].open && !s.engine[s.daemon[d].open - 1].hung) return false;
    return true;
}

std::vector<Move> moves(const State& state, const Setting& setting) {
    std::vector<Move> out;
    Moves m(state, setting, out);
    leader_moves(m);
    for (int i = 0; i < setting.engines; i++) engine_moves(m, i);
    for (int d = 0; d < setting.devices; d++) daemon_moves(m, d);
    fault_moves(m);
    return out;
}

}  // namespace token
