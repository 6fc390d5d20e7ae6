// A vendor's library, opened at run time.
#pragma once

#include <string>

namespace vnpu {

// Which file to open, and what to tell who has none.
struct LibraryChoice {
    const char* driver;       // "cuda"
    const char* soname;       // "libcuda.so.1"
    const char* environment;  // variable that names another
    const char* remedy;       // how to get it
    const char* release;      // the oldest that has all functions
};

// Stays open for the life of the process.
class Library {
   public:
    // `path` goes before the environment, the environment before the SONAME. Throws DriverError.
    Library(const LibraryChoice& choice, const std::string& path);

    // Throws DriverError where the library has no such function.
    template <class F>
    void need(F*& function, const char* name) const {
        function = reinterpret_cast<F*>(find(name, true));
    }
    // Null where it has none.
    template <class F>
    void want(F*& function, const char* name) const {
        function = reinterpret_cast<F*>(find(name, false));
    }

    const std::string& path() const { return path_; }
    // Throws DriverError where `path`, or what the environment says, names another library than this one.
    void check_same(const std::string& path) const;

   private:
    void* find(const char* name, bool needed) const;

    LibraryChoice choice_;
    std::string path_;
    void* handle_;
};

}  // namespace vnpu
