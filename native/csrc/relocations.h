// The tables of a loaded library through which it calls functions of other libraries.
#pragma once

#include <link.h>

#include <string_view>
#include <utility>
#include <vector>

namespace vnpu {

struct Slot {
    std::string_view symbol;
    void** place;
};

class Relocations {
   public:
    explicit Relocations(const dl_phdr_info& library);

    // Places that hold the address of one of `symbols`.
    std::vector<Slot> slots(const std::vector<std::string_view>& symbols) const;

    // Store `target` in a slot, also where the loader made its page read-only after binding (RELRO). Throws
    // std::system_error; then the slot is unchanged.
    void redirect(const Slot& slot, void* target) const;

   private:
    struct Table {
        const ElfW(Rela) * entries = nullptr;
        std::size_t size = 0;  // bytes
    };

    template <class T>
    const T* at(ElfW(Addr) value) const;
    void add_slots(const Table& table, const std::vector<std::string_view>& symbols, std::vector<Slot>& found) const;

    ElfW(Addr) base_;
    Table plt_;
    Table other_;
    const ElfW(Sym) * symbols_ = nullptr;
    const char* names_ = nullptr;
    std::pair<ElfW(Addr), ElfW(Addr)> read_only_{0, 0};  // pages the loader protected
};

}  // namespace vnpu
