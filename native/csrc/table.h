// Things that callers name by number: never 0, never used twice, and not taken away from under a caller that waits.
#pragma once

#include <cerrno>
#include <cstdint>
#include <mutex>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "error.h"

namespace vnpu {

template <class T>
class Table {
   public:
    using Id = std::uint64_t;

    explicit Table(const char* what) : what_(what) {}

    // While it lives, the thing is not taken.
    class Use {
       public:
        Use(Table& table, Id id, T thing) : table_(table), id_(id), thing_(std::move(thing)) {}
        Use(const Use&) = delete;
        Use& operator=(const Use&) = delete;
        ~Use() {
            const std::lock_guard lock(table_.mutex_);
            table_.entries_.at(id_).uses -= 1;
        }
        T& operator*() { return thing_; }
        T* operator->() { return &thing_; }

       private:
        Table& table_;
        Id id_;
        T thing_;
    };

    Id add(T thing) {
        const std::lock_guard lock(mutex_);
        entries_.emplace(next_, Entry{std::move(thing), 0});
        return next_++;
    }

    // Throws DriverError where there is none of that number.
    Use use(const char* call, Id id) {
        const std::lock_guard lock(mutex_);
        Entry& entry = find(call, id);
        if (entry.uses == being_removed) {
            throw busy(call, id);
        }
        entry.uses += 1;
        return Use(*this, id, entry.thing);
    }

    // Ends the thing, which stays where `end` throws. Throws DriverError too where somebody uses it.
    template <class F>
    void remove(const char* call, Id id, F&& end) {
        T thing = claim(call, id);
        try {
            end(thing);
        } catch (...) {
            const std::lock_guard lock(mutex_);
            entries_.at(id).uses = 0;
            throw;
        }
        const std::lock_guard lock(mutex_);
        entries_.erase(id);
    }

    std::vector<T> take_all() {
        const std::lock_guard lock(mutex_);
        std::vector<T> all;
        for (auto& [id, entry] : entries_) {
            all.push_back(std::move(entry.thing));
        }
        entries_.clear();
        return all;
    }

   private:
    struct Entry {
        T thing;
        int uses;
    };

    static constexpr int being_removed = -1;

    T claim(const char* call, Id id) {
        const std::lock_guard lock(mutex_);
        Entry& entry = find(call, id);
        if (entry.uses != 0) {
            throw busy(call, id);
        }
        entry.uses = being_removed;
        return entry.thing;
    }

    DriverError busy(const char* call, Id id) const {
        return errno_error(call, EBUSY, named(id) + " is in use by another thread", "wait for that call first");
    }

    std::string named(Id id) const { return std::string(what_) + " " + std::to_string(id); }

    Entry& find(const char* call, Id id) {
        const auto found = entries_.find(id);
        if (found == entries_.end()) {
            throw errno_error(call, EINVAL, "no " + named(id), std::string("pass what create_") + what_ + " returned");
        }
        return found->second;
    }

    const char* what_;
    std::mutex mutex_;  // guards everything below
    Id next_ = 1;
    std::unordered_map<Id, Entry> entries_;
};

}  // namespace vnpu
