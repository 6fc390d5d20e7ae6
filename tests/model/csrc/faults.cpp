// What the world does: each as often as its budget says, at any moment.
#include <cstring>

#include "moves.h"

namespace token {
namespace {

void engine_faults(Moves& m, int i) {
    const Engine& engine = m.from.engine[i];
    const Budget& left = m.from.left;
    u8 who = static_cast<u8>(i);
    if (!engine.alive) return;
    if (left.lease && engine.has_lease && m.room()) {
        State next = m.from;
        next.left.lease--;
        end_lease(next, i);
        m.add(next, {Verb::kLeaseEnds, who}, true);
    }
    if (left.crash) {
        State next = m.from;
        next.left.crash--;
        kill(next.engine[i]);
        m.add(next, {Verb::kCrashes, who}, true);
    }
    if (engine.hung) return;
    if (left.hang) {
        State next = m.from;
        next.left.hang--;
        next.engine[i].hung = 1;
        next.engine[i].wanted = 0;
        m.add(next, {Verb::kHangs, who}, true);
    }
    if (left.demand && !engine.wanted) {
        State next = m.from;
        next.left.demand--;
        next.engine[i].wanted = 1;
        m.add(next, {Verb::kIsWanted, who}, true);
    }
}

void restart(Moves& m, int d) {
    if (!m.from.left.daemon || !m.room()) return;
    State next = m.from;
    next.left.daemon--;
    next.push().device[d] = {};
    next.daemon_view[d] = next.length - 1;  // it lists
    Daemon& daemon = next.daemon[d];
    daemon.connected = 0;
    if (!m.set.rules.persist_owners) daemon.owners = 0;
    if (!m.set.rules.persist_owners || !m.set.rules.persist_open) daemon.open = 0;
    m.add(next, {Verb::kRestarts, kNobody, static_cast<u8>(d)}, true);
}

void change_leader(Moves& m) {
    if (!m.from.left.leader) return;
    State next = m.from;
    next.left.leader--;
    next.old_leader = next.leader;  // it does not know yet, and goes on
    next.leader = next.length - 1;
    m.add(next, {Verb::kChanges}, true);
}

void lose_store(Moves& m) {
    if (!m.from.left.loss) return;
    State next = m.from;
    next.left.loss--;
    next.store_was_lost = 1;
    std::memset(next.history, 0, sizeof next.history);
    next.history[0].revision = next.newest = next.length = 1;
    next.history[0].epoch = static_cast<u8>(m.from.now().epoch + 1);
    next.leader = 0;
    next.old_leader = kNobody;
    std::memset(next.daemon_view, 0, sizeof next.daemon_view);
    std::memset(next.engine_view, 0, sizeof next.engine_view);
    for (Engine& engine : next.engine) engine.has_lease = 0;
    m.add(next, {Verb::kLoses}, true);
}

}  // namespace

void fault_moves(Moves& m) {
    for (int i = 0; i < m.set.engines; i++) engine_faults(m, i);
    for (int d = 0; d < m.set.devices; d++) restart(m, d);
    change_leader(m);
    lose_store(m);
}

}  // namespace token
