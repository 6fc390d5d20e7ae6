// The leader: rules 2, 3, 4, 10 and 12. It decides from what it has seen; etcd compares with what is.
#include "moves.h"

namespace token {
namespace {

class Leader {
  public:
    Leader(Moves& moves, const Snapshot& view, bool old) : m_(moves), view_(view), old_(old) {}

    void decide() {
        for (int e = 0; e < m_.set.engines; e++) {
            serve(e);
            tidy(e);
            if (m_.set.rules.reclaim) reclaim(e);
        }
    }

  private:
    bool settled(int d) const {
        return view_.device[d].present && view_.device[d].closed >= view_.seat[d].revision;
    }

    bool ready(int d) const {
        if (m_.set.rules.closed) return settled(d);
        const Token& token = view_.token[d];
        if (token.revision) return view_.engine[token.holder].answered == token.revision;
        const Seat& seat = view_.seat[d];
        if (m_.set.rules.seat && seat.revision)
            return view_.engine[seat.holder].answered == seat.revision || view_.device[d].closed >= seat.revision;
        return true;
    }

    bool all_ready(int e) const {
        for (int d = 0; d < m_.set.devices; d++)
            if (m_.has(e, d) && !ready(d)) return false;
        return true;
    }

    u8 charged(int d) const {
        if (m_.set.rules.closed) return view_.device[d].owners;
        u8 mask = 0;
        for (int i = 0; i < m_.set.engines; i++) {
            const EngineKeys& keys = view_.engine[i];
            const Token& token = view_.token[d];
            bool ordered = token.revision && token.holder == i && keys.answered != token.revision;
            if (m_.has(i, d) && (keys.phase == kResident || keys.phase == kMixed || ordered)) mask |= bit(i);
        }
        return mask;
    }

    void serve(int e) {
        const EngineKeys& keys = view_.engine[e];
        if (!m_.from.engine[e].wanted || !keys.spec || keys.phase == kResident || keys.phase == kAbsent) return;
        u8 in_the_way = 0;
        for (int d = 0; d < m_.set.devices; d++) {
            if (!m_.has(e, d)) continue;
            u8 others = charged(d) & static_cast<u8>(~bit(e));
            if (count(others) >= m_.set.capacity) in_the_way |= others;
        }
        if (!in_the_way) {
            if (all_ready(e)) order(e, kRestore);
            return;
        }
        for (int w = 0; w < m_.set.engines; w++) {
            bool idle = view_.engine[w].spec && view_.engine[w].phase == kResident && !m_.from.engine[w].wanted;
            if ((in_the_way & bit(w)) && w != e && idle && all_ready(w)) order(w, kOffload);
        }
    }

    void tidy(int e) {  // an owner of some pages that is no whole resident, and nobody wants it
        const EngineKeys& keys = view_.engine[e];
        if (keys.spec && keys.phase == kMixed && !m_.from.engine[e].wanted && all_ready(e)) order(e, kOffload);
    }

    void reclaim(int e) {
        const Engine& engine = m_.from.engine[e];
        if (!engine.alive || !(engine.hung || m_.from.left.impatience)) return;
        bool needed = false;
        for (int d = 0; d < m_.set.devices; d++) {
            if (!m_.has(e, d)) continue;
            const Seat& seat = view_.seat[d];
            bool unsettled = !settled(d);
            if (!view_.device[d].present || (unsettled && (seat.holder != e || seat.order == kReclaim))) return;
            needed |= unsettled || (view_.device[d].owners & bit(e));
        }
        if (needed) order(e, kReclaim);
    }

    bool compares(int e, u8 what) const {
        const Snapshot& now = m_.from.now();
        for (int d = 0; d < m_.set.devices; d++) {
            if (!m_.has(e, d)) continue;
            bool same = m_.set.rules.seat ? now.seat[d].revision == view_.seat[d].revision
                                          : now.token[d].revision == view_.token[d].revision;
            if (!same) return false;
        }
        if (now.epoch != view_.epoch) return false;
        if (what == kReclaim) return true;
        // The transaction puts tokens on the engine's lease: a dead lease fails it whole.
        return now.engine[e].spec && now.engine[e].spec == view_.engine[e].spec && m_.from.engine[e].has_lease;
    }

    void order(int e, u8 what) {
        if (!compares(e, what) || !m_.room()) return;
        State next = m_.from;
        bool impatient = what == kReclaim && !m_.from.engine[e].hung;
        if (impatient) next.left.impatience--;
        Snapshot& now = next.push();
        for (int d = 0; d < m_.set.devices; d++) {
            if (!m_.has(e, d)) continue;
            Token token{now.revision, static_cast<u8>(e), now.engine[e].spec, what};
            now.token[d] = what == kReclaim ? Token{} : token;
            if (m_.set.rules.seat) now.seat[d] = {now.revision, static_cast<u8>(e), what};
        }
        m_.add(next, {Verb::kOrder, static_cast<u8>(e), kNobody, what}, old_ || impatient);
    }

    Moves& m_;
    const Snapshot& view_;
    bool old_;
};

}  // namespace

void leader_moves(Moves& m) {
    const State& s = m.from;
    if (s.leader < s.length - 1) {
        State next = s;
        next.leader++;
        m.add(next, {Verb::kLeaderSees});
    }
    Leader(m, s.history[s.leader], false).decide();
    if (s.old_leader == kNobody) return;
    if (s.old_leader < s.length - 1) {
        State next = s;
        next.old_leader++;
        m.add(next, {Verb::kOldLeaderSees});
    }
    Leader(m, s.history[s.old_leader], true).decide();
}

}  // namespace token
