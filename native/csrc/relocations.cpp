#include "relocations.h"

#include <elf.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <system_error>

namespace vnpu {

namespace {

// Relocations that put a function's plain address into a slot: calls through the PLT, and pointers to functions.
bool binds_address(const ElfW(Rela) & entry) {
#if defined(__x86_64__)
    switch (ELF64_R_TYPE(entry.r_info)) {
        case R_X86_64_JUMP_SLOT:
        case R_X86_64_GLOB_DAT:
            return true;
        case R_X86_64_64:
            return entry.r_addend == 0;
        default:
            return false;
    }
#elif defined(__aarch64__)
    switch (ELF64_R_TYPE(entry.r_info)) {
        case R_AARCH64_JUMP_SLOT:
        case R_AARCH64_GLOB_DAT:
        case R_AARCH64_ABS64:
            return entry.r_addend == 0;
        default:
            return false;
    }
#else
    static_cast<void>(entry);
    return false;
#endif
}

ElfW(Addr) page_size() { return static_cast<ElfW(Addr)>(::sysconf(_SC_PAGESIZE)); }

}  // namespace

// glibc relocates the addresses of the dynamic section, other loaders do not.
template <class T>
const T* Relocations::at(ElfW(Addr) value) const {
    return reinterpret_cast<const T*>(value < base_ ? base_ + value : value);
}

Relocations::Relocations(const dl_phdr_info& library) : base_(library.dlpi_addr) {
    const ElfW(Dyn)* dynamic = nullptr;
    for (int i = 0; i < library.dlpi_phnum; ++i) {
        const ElfW(Phdr)& header = library.dlpi_phdr[i];
        if (header.p_type == PT_DYNAMIC) {
            dynamic = reinterpret_cast<const ElfW(Dyn)*>(base_ + header.p_vaddr);
        } else if (header.p_type == PT_GNU_RELRO) {
            const ElfW(Addr) page = page_size();
            read_only_ = {(base_ + header.p_vaddr) / page * page, (base_ + header.p_vaddr + header.p_memsz) / page * page};
        }
    }
    for (; dynamic != nullptr && dynamic->d_tag != DT_NULL; ++dynamic) {
        switch (dynamic->d_tag) {
            case DT_JMPREL:
                plt_.entries = at<ElfW(Rela)>(dynamic->d_un.d_ptr);
                break;
            case DT_PLTRELSZ:
                plt_.size = dynamic->d_un.d_val;
                break;
            case DT_RELA:
                other_.entries = at<ElfW(Rela)>(dynamic->d_un.d_ptr);
                break;
            case DT_RELASZ:
                other_.size = dynamic->d_un.d_val;
                break;
            case DT_SYMTAB:
                symbols_ = at<ElfW(Sym)>(dynamic->d_un.d_ptr);
                break;
            case DT_STRTAB:
                names_ = at<char>(dynamic->d_un.d_ptr);
                break;
            default:
                break;
        }
    }
}

void Relocations::add_slots(const Table& table, const std::vector<std::string_view>& symbols,
                            std::vector<Slot>& found) const {
    if (table.entries == nullptr || symbols_ == nullptr || names_ == nullptr) {
        return;
    }
    for (std::size_t i = 0; i < table.size / sizeof(ElfW(Rela)); ++i) {
        const ElfW(Rela)& entry = table.entries[i];
        if (!binds_address(entry)) {
            continue;
        }
        const std::string_view name = names_ + symbols_[ELF64_R_SYM(entry.r_info)].st_name;
        if (std::find(symbols.begin(), symbols.end(), name) != symbols.end()) {
            found.push_back({name, reinterpret_cast<void**>(base_ + entry.r_offset)});
        }
    }
}

std::vector<Slot> Relocations::slots(const std::vector<std::string_view>& symbols) const {
    std::vector<Slot> found;
    add_slots(plt_, symbols, found);
    add_slots(other_, symbols, found);
    return found;
}

void Relocations::redirect(const Slot& slot, void* target) const {
    const auto place = reinterpret_cast<ElfW(Addr)>(slot.place);
    const ElfW(Addr) page = page_size();
    void* const start = reinterpret_cast<void*>(place / page * page);
    const bool read_only = read_only_.first <= place && place < read_only_.second;
    if (read_only && ::mprotect(start, page, PROT_READ | PROT_WRITE) != 0) {
        throw std::system_error(errno, std::generic_category(), "cannot make a relocation slot writable");
    }
    std::atomic_ref<void*>(*slot.place).store(target, std::memory_order_release);
    if (read_only && ::mprotect(start, page, PROT_READ) != 0) {
        throw std::system_error(errno, std::generic_category(), "cannot protect a relocation slot again");
    }
}

}  // namespace vnpu
