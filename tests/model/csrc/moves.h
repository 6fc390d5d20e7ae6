// What the actors share while they list their moves.
#pragma once

#include "state.h"

namespace token {

class Moves {
  public:
    Moves(const State& state, const Setting& setting, std::vector<Move>& out) : from(state), set(setting), out_(out) {}

    const State& from;
    const Setting& set;

    bool room() const;  // may a further revision be written while the slowest watcher lags this much
    bool has(int engine, int device) const { return set.devices_of(engine) >> device & 1; }
    void add(State next, Label label, bool fault = false, const char* broken = nullptr);

  private:
    std::vector<Move>& out_;
};

inline u8 bit(int i) { return static_cast<u8>(1 << i); }
inline int count(u8 mask) { return __builtin_popcount(mask); }
inline u8 larger(u8 a, u8 b) { return a > b ? a : b; }

u8 phase_of(const Engine& engine, u8 devices);
void end_lease(State& state, int engine);  // its keys go, in one revision
void kill(Engine& engine);                 // what it mapped stays mapped until a daemon frees it

void leader_moves(Moves& moves);
void engine_moves(Moves& moves, int engine);
void daemon_moves(Moves& moves, int device);
void fault_moves(Moves& moves);

}  // namespace token
