#pragma once

// The parts of Indexing (kernels/kernels.h has their contracts), one source each.

#include "kernels/kernels.h"

namespace tessera::kernels::TESSERA_ISA {

/// Throws IndexError for the first element, in row-major order, that is outside [lowest, limit).
void check_indices(const char* operation, const char* what, const ConstView& indices, std::int64_t limit,
                   std::int64_t lowest = 0);

// embedding.cpp
void embedding_rows(const ConstView& table, const ConstView& ids, const View& y);
void embedding_backward_rows(const ConstView& dy, const ConstView& ids, const View& dtable);

// gather_scatter.cpp
void gather_elements(const ConstView& x, int dim, const ConstView& index, const View& y);
void scatter_add_elements(const View& y, int dim, const ConstView& index, const ConstView& src);

}  // namespace tessera::kernels::TESSERA_ISA
