#include "books.h"

#include <algorithm>
#include <cstring>

namespace simulator {

Process* process() {
    static Process* const self = [] {
        Card* const card = Card::get();
        return card != nullptr ? new Process(*card, vendor_rules) : nullptr;
    }();
    return self;
}

Result create_stream(Process& self, int device, std::uint64_t* stream) {
    const bool room = self.card.locked([&](Book& book) {
        if (self.card.streams(device) >= book.max_streams) {
            return false;
        }
        book.processes[self.card.slot()].streams[device] += 1;
        return true;
    });
    if (!room) {
        return refuse(Fault::out_of_streams, "the device's streams are all in use");
    }
    *stream = self.streams.create(device);
    return {};
}

Result destroy_stream(Process& self, std::uint64_t stream) {
    const auto device = self.streams.device(stream);
    const Result result = self.streams.destroy(stream);
    if (result.ok() && device) {
        self.card.locked([&](Book& book) { book.processes[self.card.slot()].streams[*device] -= 1; });
    }
    return result;
}

namespace {

std::string card_books(Card& card) {
    return card.locked([&](Book& book) {
        std::string json = "\"capacity\": " + std::to_string(book.capacity) +
                           ", \"freed\": " + std::to_string(book.freed) + ", \"used\": [";
        for (int device = 0; device < book.devices; ++device) {
            json += (device != 0 ? ", " : "") + std::to_string(card.used(device));
        }
        json += "], \"chunks\": [";
        const char* comma = "";
        for (const ChunkRecord& chunk : book.chunks) {
            if (chunk.id == 0) {
                continue;
            }
            json += comma + std::string("{\"id\": ") + std::to_string(chunk.id) +
                    ", \"size\": " + std::to_string(chunk.size) + ", \"device\": " + std::to_string(chunk.device) +
                    ", \"holders\": [";
            const char* inner = "";
            for (const Reference& one : book.references) {
                if (one.chunk == chunk.id) {
                    json += inner + std::string("{\"pid\": ") + std::to_string(book.processes[one.slot].pid) +
                            ", \"own\": " + (one.own != 0 ? "true" : "false") +
                            ", \"handles\": " + std::to_string(one.handles) +
                            ", \"mappings\": " + std::to_string(one.mappings) + "}";
                    inner = ", ";
                }
            }
            json += "]}";
            comma = ", ";
        }
        return json + "]";
    });
}

}  // namespace

}  // namespace simulator

void simulator_hold(int held) {
    if (simulator::Process* const self = simulator::process()) {
        self->streams.hold(held != 0);
    }
}

void simulator_capacity(std::uint64_t bytes) {
    if (simulator::Process* const self = simulator::process()) {
        self->card.locked([&](simulator::Book& book) { book.capacity = bytes; });
    }
}

std::size_t simulator_books(char* out, std::size_t room) {
    simulator::Process* const self = simulator::process();
    std::string json = "{}";
    if (self != nullptr) {
        json = "{" + simulator::card_books(self->card) + ", \"process\": {";
        self->space.count(json);
        self->host.count(json);
        self->streams.count(json);
        json += "}}";
    }
    if (room != 0) {
        const std::size_t part = std::min(room - 1, json.size());
        std::memcpy(out, json.data(), part);
        out[part] = 0;
    }
    return json.size();
}
