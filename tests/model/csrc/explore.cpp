#include "explore.h"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <string_view>
#include <unordered_map>
#include <unordered_set>

namespace token {
namespace {

using Key = std::string;
using Id = std::uint32_t;

constexpr std::size_t kTail = offsetof(State, leader);
constexpr int kMostRevisions = 200;  // a run whose numbers would overflow is cut off

Key pack(const State& state) {
    const char* raw = reinterpret_cast<const char*>(&state);
    Key key(1, static_cast<char>(state.length));
    key.append(reinterpret_cast<const char*>(state.history), sizeof(Snapshot) * state.length);
    return key.append(raw + kTail, sizeof(State) - kTail);
}

State unpack(const Key& key) {
    State state;
    std::memset(static_cast<void*>(&state), 0, sizeof state);
    state.length = static_cast<u8>(key[0]);
    std::size_t history = sizeof(Snapshot) * state.length;
    std::memcpy(static_cast<void*>(state.history), key.data() + 1, history);
    std::memcpy(reinterpret_cast<char*>(&state) + kTail, key.data() + 1 + history, sizeof(State) - kTail);
    return state;
}

class Graph {
  public:
    explicit Graph(const Setting& setting) : set_(setting) { meet(first(setting), 0); }

    Findings search() {
        for (Id id = 0; id < keys_.size(); id++) {
            if (keys_.size() > set_.most) {
                found_.exhausted = false;
                break;
            }
            expand(id);
        }
        found_.states = keys_.size();
        if (found_.exhausted && found_.broken.empty()) find_wedges();
        return found_;
    }

  private:
    Id meet(const State& state, Id parent) {
        auto [place, fresh] = ids_.emplace(pack(state), static_cast<Id>(keys_.size()));
        if (fresh) {
            keys_.push_back(&place->first);
            parents_.push_back(parent);
            served_.push_back(served(state, set_));
        }
        return place->second;
    }

    void expand(Id id) {
        for (const Move& move : moves(unpack(*keys_[id]), set_)) {
            if (move.next.newest > kMostRevisions) continue;
            if (move.broken) {
                note(move.broken, id, move.label.text());
                continue;
            }
            Id next = meet(move.next, id);
            if (!move.fault && next != id) edges_.push_back({next, id});
        }
    }

    void note(const char* what, Id id, const std::string& last) {
        if (found_.broken.count(what)) return;
        History history = way_to(id);
        history.push_back(last);
        found_.broken[what] = history;
    }

    History way_to(Id id) const {
        std::vector<Id> path{id};
        while (path.back()) path.push_back(parents_[path.back()]);
        std::reverse(path.begin(), path.end());
        History history;
        for (std::size_t i = 0; i + 1 < path.size(); i++) history.push_back(step(path[i], path[i + 1]));
        return history;
    }

    std::string step(Id from, Id to) const {
        for (const Move& move : moves(unpack(*keys_[from]), set_))
            if (pack(move.next) == *keys_[to]) return move.label.text();
        return "?";
    }

    void find_wedges() {
        std::sort(edges_.begin(), edges_.end());
        std::vector<char> reaches(served_.begin(), served_.end());
        std::vector<Id> work;
        for (Id id = 0; id < keys_.size(); id++)
            if (reaches[id]) work.push_back(id);
        while (!work.empty()) {
            std::pair<Id, Id> from{work.back(), 0};
            work.pop_back();
            for (auto e = std::lower_bound(edges_.begin(), edges_.end(), from); e != edges_.end() && e->first == from.first; ++e)
                if (!reaches[e->second]) {
                    reaches[e->second] = 1;
                    work.push_back(e->second);
                }
        }
        found_.wedged = static_cast<std::size_t>(std::count(reaches.begin(), reaches.end(), 0));
        auto stuck = std::find(reaches.begin(), reaches.end(), 0);
        if (stuck != reaches.end()) found_.wedge = way_to(static_cast<Id>(stuck - reaches.begin()));
    }

    const Setting& set_;
    Findings found_;
    std::unordered_map<Key, Id> ids_;
    std::vector<const Key*> keys_;
    std::vector<Id> parents_;
    std::vector<char> served_;
    std::vector<std::pair<Id, Id>> edges_;  // (to, from), of moves that are no faults
};

using Front = std::unordered_set<Key>;

bool visible(Verb verb) {
    switch (verb) {
        case Verb::kOrder:
        case Verb::kRegisters:
        case Verb::kAnswers:
        case Verb::kLeaseEnds:
        case Verb::kPublishes:
        case Verb::kRestarts: return true;
        default: return false;
    }
}

// All states of `front` and those that moves nobody sees lead to. Somebody may always come to want a model.
Front closure(Front front, const Setting& setting) {
    std::vector<Key> work(front.begin(), front.end());
    while (!work.empty()) {
        State state = unpack(work.back());
        work.pop_back();
        state.left.demand = setting.faults.demand;
        for (const Move& move : moves(state, setting))
            if (!visible(move.label.verb) && !move.broken)
                if (auto [place, fresh] = front.insert(pack(move.next)); fresh) work.push_back(*place);
    }
    return front;
}

Front after(const Front& front, const std::string& line, const Setting& setting) {
    Front next;
    for (const Key& key : front)
        for (const Move& move : moves(unpack(key), setting))
            if (visible(move.label.verb) && !move.broken && move.label.text() == line) next.insert(pack(move.next));
    return next;
}

}  // namespace

Findings explore(const Setting& setting) { return Graph(setting).search(); }

std::size_t accepted(const Setting& setting, const History& trace) {
    Front front = closure({pack(first(setting))}, setting);
    for (std::size_t line = 0; line < trace.size(); line++) {
        front = closure(after(front, trace[line], setting), setting);
        if (front.empty()) return line;
    }
    return trace.size();
}

}  // namespace token
