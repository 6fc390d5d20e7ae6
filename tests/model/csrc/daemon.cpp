// A node daemon: rules 8 to 11 and 13. What it answers to engines stands in engine.cpp.
#include "moves.h"

namespace token {
namespace {

class Actor {
  public:
    Actor(Moves& moves, int device)
        : m_(moves), d_(device), me_(moves.from.daemon[device]),
          view_(moves.from.history[moves.from.daemon_view[device]]) {}

    void act() {
        watch();
        for (int i = 0; i < m_.set.engines; i++) {
            free_the_dead(i);
            if (!m_.set.rules.keep_pages) free_early(i);
        }
        publish();
        if (m_.set.rules.seat && m_.set.rules.leave) {
            if (m_.set.rules.close_unentered) close_unentered();
            if (m_.set.rules.reclaim) reclaim();
        }
        if (m_.set.rules.epoch) turn_epoch();
    }

  private:
    Label label(Verb verb, int engine = kNobody, u8 detail = 0) const {
        return {verb, static_cast<u8>(engine), static_cast<u8>(d_), detail};
    }

    void watch() {
        if (m_.from.daemon_view[d_] >= m_.from.length - 1) return;
        State next = m_.from;
        next.daemon_view[d_]++;
        m_.add(next, label(Verb::kDaemonSees));
    }

    void free_the_dead(int i) {
        bool known = m_.set.rules.persist_owners || (me_.connected & bit(i));
        bool mine = (me_.owners & bit(i)) || me_.open == i + 1;
        if (m_.from.engine[i].alive || !m_.has(i, d_) || !mine || !known) return;
        State next = m_.from;
        Daemon& me = next.daemon[d_];
        next.engine[i].pages &= static_cast<u8>(~bit(d_));
        me.owners &= static_cast<u8>(~bit(i));
        if (me.open == i + 1) {
            me.open = 0;
            me.closed = larger(me.closed, me.current);
        }
        m_.add(next, label(Verb::kFreesTheDead, i));
    }

    void free_early(int i) {
        const Engine& engine = m_.from.engine[i];
        if (!engine.alive || engine.has_lease || !m_.has(i, d_) || !(me_.owners & bit(i))) return;
        State next = m_.from;
        next.daemon[d_].owners &= static_cast<u8>(~bit(i));
        m_.add(next, label(Verb::kFreesEarly, i));
    }

    void publish() {
        const Snapshot& now = m_.from.now();
        const DeviceKey& key = now.device[d_];
        bool in_epoch = !m_.set.rules.epoch || me_.epoch == now.epoch;
        bool news = !key.present || key.closed != me_.closed || key.owners != me_.owners;
        if (!in_epoch || !news || !m_.room()) return;
        State next = m_.from;
        next.push().device[d_] = {1, me_.closed, me_.owners};
        bool settled = me_.closed >= now.seat[d_].revision;
        Label what = label(Verb::kPublishes, kNobody, static_cast<u8>(me_.owners | (settled ? 128 : 0)));
        m_.add(next, what);
        for (int i = 0; i < m_.set.engines; i++)
            if (answers(i)) m_.add(with_answer(next, i), what);
    }

    // An engine that has left may have its answer put in the same transaction, on its own lease.
    bool answers(int i) const {
        const Engine& engine = m_.from.engine[i];
        bool left = m_.has(i, d_) && engine.alive && engine.step == kAnswering;
        return left && engine.has_lease && m_.from.now().engine[i].answered != engine.fence;
    }

    State with_answer(State next, int i) const {
        EngineKeys& keys = next.history[next.length - 1].engine[i];
        keys = {keys.spec, phase_of(next.engine[i], m_.set.devices_of(i)), next.engine[i].fence};
        return next;
    }

    void close_unentered() {
        const Seat& seat = view_.seat[d_];
        bool gone = seat.revision && view_.token[d_].revision != seat.revision && seat.order != kReclaim;
        bool in_epoch = !m_.set.rules.epoch || me_.epoch == view_.epoch;
        if (!gone || seat.revision <= me_.closed || me_.open || !in_epoch) return;
        State next = m_.from;
        next.daemon[d_].closed = seat.revision;
        m_.add(next, label(Verb::kClosesUnentered));
    }

    void reclaim() {
        const Seat& seat = view_.seat[d_];
        if (seat.order != kReclaim || seat.revision <= me_.closed) return;
        State next = m_.from;
        if (m_.from.engine[seat.holder].alive) {
            kill(next.engine[seat.holder]);
            m_.add(next, label(Verb::kKills, seat.holder));
        } else if (!(me_.owners & bit(seat.holder)) && !me_.open) {
            next.daemon[d_].closed = seat.revision;
            m_.add(next, label(Verb::kReclaims, seat.holder));
        }
    }

    void turn_epoch() {
        if (view_.epoch == me_.epoch) return;
        State next = m_.from;
        if (!me_.open) {
            Daemon& me = next.daemon[d_];
            me.epoch = view_.epoch;
            me.closed = me.highest = me.current = 0;
            m_.add(next, label(Verb::kTurnsEpoch));
        } else if (m_.from.engine[me_.open - 1].hung) {  // over its limit
            kill(next.engine[me_.open - 1]);
            m_.add(next, label(Verb::kKills, me_.open - 1));
        }
    }

    Moves& m_;
    int d_;
    const Daemon& me_;
    const Snapshot& view_;
};

}  // namespace

void daemon_moves(Moves& m, int device) { Actor(m, device).act(); }

}  // namespace token
