// An engine: rule 5, and what the daemon answers it (rules 6 and 7).
#include "moves.h"

namespace token {
namespace {

class Actor {
  public:
    Actor(Moves& moves, int engine)
        : m_(moves), i_(engine), me_(moves.from.engine[engine]), devices_(moves.set.devices_of(engine)) {}

    void act() {
        if (!me_.alive) return bury();
        if (me_.hung) return;
        watch();
        serve();
        reconnect();
        if (!me_.has_lease) enlist();
        switch (me_.step) {
            case kIdle: return take();
            case kEntering: return enter();
            case kWorking: return work();
            case kLeaving: return leave();
            default: return answer();
        }
    }

  private:
    Label label(Verb verb, int device = kNobody, u8 detail = 0) const {
        return {verb, static_cast<u8>(i_), static_cast<u8>(device), detail};
    }
    bool connected(int d) const { return m_.from.daemon[d].connected & bit(i_); }

    void bury() {
        if (!me_.has_lease || !m_.room()) return;
        State next = m_.from;
        end_lease(next, i_);
        m_.add(next, label(Verb::kLeaseEnds));
    }

    void watch() {
        if (m_.from.engine_view[i_] >= m_.from.length - 1) return;
        State next = m_.from;
        next.engine_view[i_]++;
        m_.add(next, label(Verb::kEngineSees));
    }

    void serve() {
        bool whole = m_.from.now().engine[i_].phase == kResident && me_.pages == devices_;
        if (!me_.wanted || !whole || me_.step != kIdle) return;
        State next = m_.from;
        next.engine[i_].wanted = 0;
        m_.add(next, label(Verb::kServes));
    }

    void reconnect() {
        for (int d = 0; d < m_.set.devices; d++) {
            if (!(devices_ & bit(d)) || connected(d)) continue;
            State next = m_.from;
            next.daemon[d].connected |= bit(i_);
            if (me_.pages & bit(d)) next.daemon[d].owners |= bit(i_);
            m_.add(next, label(Verb::kReconnects, d));
        }
    }

    void enlist() {
        if (!m_.room()) return;
        State next = m_.from;
        Engine& me = next.engine[i_];
        me.leases++;
        me.has_lease = 1;
        if (m_.set.rules.last_fence) me.last_fence = 0;
        u8 phase = me.step == kIdle ? phase_of(me, devices_) : static_cast<u8>(kMixed);
        next.push().engine[i_] = {me.leases, phase, 0};
        next.engine_view[i_] = next.length - 1;
        m_.add(next, label(Verb::kRegisters, kNobody, phase));
    }

    void take() {
        const Snapshot& view = m_.from.history[m_.from.engine_view[i_]];
        u8 fence = 0, order = kNone;
        for (int d = 0; d < m_.set.devices; d++) {
            if (!(devices_ & bit(d))) continue;
            const Token& token = view.token[d];
            bool mine = token.revision && token.holder == i_ && token.lease == me_.leases;
            if (!mine || token.revision <= me_.last_fence) return;
            fence = token.revision;
            order = token.order;
        }
        if (!fence) return;
        State next = m_.from;
        Engine& me = next.engine[i_];
        me.step = kEntering;
        me.fence = fence;
        me.fence_epoch = view.epoch;
        me.fence_lease = me.leases;
        me.order = order;
        me.entered = me.done = me.failed = 0;
        m_.add(next, label(Verb::kTakes, kNobody, order));
    }

    void enter() {
        for (int d = 0; d < m_.set.devices; d++) {
            if (!(devices_ & bit(d)) || (me_.entered & bit(d)) || !connected(d)) continue;
            if (enter(d)) return;
        }
    }

    bool enter(int d) {  // false: the daemon has not come to the epoch yet, the next device may have
        const Rules& rules = m_.set.rules;
        const Daemon& daemon = m_.from.daemon[d];
        const Snapshot& view = m_.from.history[m_.from.daemon_view[d]];
        bool same_epoch = !rules.epoch || view.epoch == me_.fence_epoch;
        bool stands = view.token[d].revision == me_.fence && view.token[d].holder == i_ && same_epoch;
        if (rules.epoch && daemon.epoch != view.epoch && same_epoch) return false;
        bool known_epoch = !rules.epoch || me_.fence_epoch == daemon.epoch;
        bool stale = !stands && (view.revision >= me_.fence || !same_epoch);
        bool old = known_epoch && me_.fence < daemon.highest;
        bool over = known_epoch && rules.leave && me_.fence <= daemon.closed;
        if (stale || old || over)
            refuse(d);
        else if (stands && (!rules.leave || !daemon.open))
            accept(d);
        return true;
    }

    void refuse(int d) {  // leave the others, touch nothing
        State next = m_.from;
        Engine& me = next.engine[i_];
        if (m_.set.rules.leave)
            for (int x = 0; x < m_.set.devices; x++)
                if (me.entered & bit(x)) close(next.daemon[x]);
        me.step = kAnswering;
        me.entered = 0;
        m_.add(next, label(Verb::kIsRefused, d));
    }

    void accept(int d) {
        State next = m_.from;
        Daemon& daemon = next.daemon[d];
        Engine& me = next.engine[i_];
        daemon.current = daemon.highest = me.fence;
        if (m_.set.rules.leave) daemon.open = static_cast<u8>(i_ + 1);
        me.entered |= bit(d);
        if (me.entered == devices_) me.step = kWorking;
        m_.add(next, label(Verb::kEnters, d));
    }

    void work() {
        for (int d = 0; d < m_.set.devices; d++) {
            if (!(devices_ & bit(d)) || (me_.done & bit(d)) || !connected(d)) continue;
            return work(d);
        }
    }

    void work(int d) {
        State next = m_.from;
        Engine& me = next.engine[i_];
        Daemon& daemon = next.daemon[d];
        const char* broken = nullptr;
        Verb verb = Verb::kMaps;
        if (daemon.current != me.fence) {
            me.step = kLeaving;
            me.failed = 1;
            verb = Verb::kIsInterrupted;
        } else if (me.order == kOffload) {
            me.pages &= static_cast<u8>(~bit(d));
            daemon.owners &= static_cast<u8>(~bit(i_));
            me.done |= bit(d);
        } else if (me.pages & bit(d)) {
            me.done |= bit(d);
        } else if (count(daemon.owners) >= m_.set.capacity) {
            me.step = kLeaving;
            me.failed = 1;
            verb = Verb::kIsDenied;
            broken = "double grant: a valid fence, and no pages are free";
        } else {
            me.pages |= bit(d);
            daemon.owners |= bit(i_);
            me.done |= bit(d);
        }
        if (me.done == devices_) me.step = kLeaving;
        m_.add(next, label(verb, d, me.order), false, broken);
    }

    void leave() {
        State next = m_.from;
        Engine& me = next.engine[i_];
        for (int d = 0; d < m_.set.devices; d++) {
            if (!(devices_ & bit(d))) continue;
            if (m_.set.rules.leave && !connected(d)) return;
            bool undo = me.failed && me.order == kRestore && (me.pages & bit(d)) && next.daemon[d].current == me.fence;
            if (!undo) continue;
            if (!connected(d)) return;
            me.pages &= static_cast<u8>(~bit(d));
            next.daemon[d].owners &= static_cast<u8>(~bit(i_));
        }
        if (m_.set.rules.leave)
            for (int d = 0; d < m_.set.devices; d++)
                if (devices_ & bit(d)) close(next.daemon[d]);
        me.step = kAnswering;
        me.entered = me.done = 0;
        m_.add(next, label(Verb::kLeaves));
    }

    void answer() {
        bool stands = me_.has_lease && m_.from.now().engine[i_].answered == me_.fence;  // the daemon has put it
        if (!stands && !m_.room()) return;
        State next = m_.from;
        Engine& me = next.engine[i_];
        if (me.fence_lease == me.leases || !m_.set.rules.last_fence) me.last_fence = me.fence;
        u8 phase = phase_of(me, devices_);
        if (me.has_lease && !stands) next.push().engine[i_] = {next.now().engine[i_].spec, phase, me.fence};
        me.step = kIdle;
        me.fence = me.fence_epoch = me.fence_lease = me.order = me.failed = 0;
        Verb verb = stands ? Verb::kFindsItsAnswer : Verb::kAnswers;
        m_.add(next, label(verb, kNobody, me_.has_lease ? phase : static_cast<u8>(kAbsent)));
    }

    void close(Daemon& daemon) const {
        daemon.open = 0;
        daemon.closed = larger(daemon.closed, me_.fence);
    }

    Moves& m_;
    int i_;
    const Engine& me_;
    u8 devices_;
};

}  // namespace

void engine_moves(Moves& m, int engine) { Actor(m, engine).act(); }

}  // namespace token
