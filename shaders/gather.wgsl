// gather: out[.., j, ..] = x[.., index[.., j, ..], ..], and its gradient scatter_add, in which each index's
// elements are added in their order, so that results do not depend on timing.
//
// T, S: type of an element in registers and in memory (a bool is a u32 there). RANK: dimensions of the output. AXIS: which of them is indexed. VEC: the
// innermost dimension in vec4s. UNROLL: indices looked at in one turn of a loop.
// SCATTER: an invocation for each element of the output looks for its indices. TABLE: an invocation for each row of the output, and
// COLUMNS of its columns, does; FOURS: indices are read in vec4s. ROWS: an invocation for each
// index, for few indices into many rows, after ZERO.
//! variant gather: GATHER=1 T=f32 S=f32 RANK=3 VEC=0 VEC4=0
//! variant gather, vec4: GATHER=1 T=f32 S=f32 RANK=2 VEC=1 VEC4=1
//! variant gather, bool: GATHER=1 T=bool S=u32 RANK=1 VEC=1 VEC4=1
//! variant scatter: SCATTER=1 AXIS=1 UNROLL=1 T=f32 S=f32 RANK=3 VEC=0 VEC4=0
//! variant scatter, i32, vec4: SCATTER=1 AXIS=1 UNROLL=4 T=i32 S=i32 RANK=2 VEC=1 VEC4=1
//! variant zeros: ZERO=1 T=f32 S=f32 RANK=1 VEC=0 VEC4=0
//! variant table: TABLE=1 FOURS=0 COLUMNS=8 T=f32 S=f32 RANK=1 VEC=0 VEC4=0
//! variant table, vec4: TABLE=1 FOURS=1 COLUMNS=8 T=f32 S=f32 RANK=1 VEC=1 VEC4=1
//! variant scatter of rows: ROWS=1 UNROLL=1 COLUMNS=1 T=f32 S=f32 RANK=1 VEC=0 VEC4=0
//! variant scatter of rows, vec4: ROWS=1 UNROLL=2 COLUMNS=4 T=f32 S=f32 RANK=1 VEC=1 VEC4=1

#import loops

struct Params {
    // Invocations that have something to do.
    total: u32,
    x_offset: u32,
    // Stride of x along the indexed dimension.
    x_step: u32,
    index_offset: u32,
    index_step: u32,
    // Of the indexed dimension: size on the side of the indexed tensor, and how many indices there are.
    size: u32,
    length: u32,
    out_offset: u32,
    // For each dimension of the output, the innermost first: size, stride in x, stride in index.
    dims: array<vec4<u32>, 16>,
}
@group(0) @binding(0) var<uniform> params: Params;
// The tensor that is read (gather) or scattered.
#if VEC
@group(0) @binding(2) var<storage, read> x: array<vec4<${S}>>;
alias Item = vec4<${T}>;
#else
@group(0) @binding(2) var<storage, read> x: array<${S}>;
alias Item = ${T};
#endif
#if FOURS
@group(0) @binding(3) var<storage, read> indices: array<vec4<i32>>;
#else
@group(0) @binding(3) var<storage, read> indices: array<i32>;
#endif
#epilogue
#status

fn load(at: u32) -> Item {
#if VEC
    return Item(x[at / 4u]);
#else
    return Item(x[at]);
#endif
}

// Stores element (or vec4) i of the output.
fn keep(i: u32, v: Item) {
#if VEC
    store4(params.out_offset / 4u + i, v);
#else
    store(params.out_offset + i, v);
#endif
}

@compute @workgroup_size(64)
fn gather(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) invocation: u32,
) {
    let i = ((group.z * grid.y + group.y) * grid.x + group.x) * 64u + invocation;
    if i >= params.total {
        return;
    }
#if ZERO
    keep(i, Item());
#else
#if TABLE
    let units = params.dims[0].x;
    let chunks = (units + ${COLUMNS}u - 1u) / ${COLUMNS}u;
    let row = i / chunks;
    let column = i % chunks * ${COLUMNS}u;
#for c in 0..${COLUMNS}
    var sum${c} = Item();
#end
    var bad = false;
    let length = bound(params.length, i);
    for (var first = 0u; first < length; first += 4u) {
#if FOURS
        let found = indices[(params.index_offset + first) / 4u];
#else
        let places = params.index_offset + min(vec4<u32>(first, first + 1u, first + 2u, first + 3u), vec4<u32>(length - 1u)) * params.index_step;
        let found = vec4<i32>(indices[places.x], indices[places.y], indices[places.z], indices[places.w]);
#endif
        bad |= any(vec4<u32>(found) >= vec4<u32>(params.size));
        let here = found == vec4<i32>(i32(row));
        if any(here) {
#for u in 0..4
            if here[${u}] && first + ${u}u < length {
                let at = params.x_offset + (first + ${u}u) * params.x_step;
#for c in 0..${COLUMNS}
                sum${c} += load(at + min(column + ${c}u, units - 1u) * params.dims[0].y);
#end
            }
#end
        }
    }
    if bad {
        report_bad_index();
    }
#for c in 0..${COLUMNS}
    if column + ${c}u < units {
        keep(row * units + column + ${c}u, sum${c});
    }
#end
#else
#if ROWS
    // The rows of x go to rows of the output. The first of all rows with equal index adds them up, COLUMNS
    // columns at a time.
    let units = params.dims[0].x;
    let chunks = (units + ${COLUMNS}u - 1u) / ${COLUMNS}u;
    let j = i / chunks;
    let column = i % chunks * ${COLUMNS}u;
    let mine = indices[params.index_offset + j * params.index_step];
    if u32(mine) >= params.size {
        report_bad_index();
        return;
    }
    for (var l = 0u; l < j; l += ${UNROLL}u) {
#for u in 0..${UNROLL}
        if l + ${u}u < j && indices[params.index_offset + (l + ${u}u) * params.index_step] == mine {
            return;
        }
#end
    }
#for c in 0..${COLUMNS}
    var sum${c} = Item();
#end
    let length = bound(params.length, i);
    for (var first = j; first < length; first += ${UNROLL}u) {
#for u in 0..${UNROLL}
        {
            let l = first + ${u}u;
            if l < length && indices[params.index_offset + l * params.index_step] == mine {
                let at = params.x_offset + l * params.x_step;
#for c in 0..${COLUMNS}
                sum${c} += load(at + min(column + ${c}u, units - 1u) * params.dims[0].y);
#end
            }
        }
#end
    }
#for c in 0..${COLUMNS}
    if column + ${c}u < units {
        keep(u32(mine) * units + column + ${c}u, sum${c});
    }
#end
#else
    var rest = i;
    var at = params.x_offset;
    var place = params.index_offset;
#for d in 0..${RANK}
    let c${d} = rest % params.dims[${d}].x;
    rest /= params.dims[${d}].x;
    at += c${d} * params.dims[${d}].y;
    place += c${d} * params.dims[${d}].z;
#end
#if SCATTER
    let mine = i32(c${AXIS});
    var sum = Item();
    var bad = false;
    let length = bound(params.length, i);
    for (var first = 0u; first < length; first += ${UNROLL}u) {
#for u in 0..${UNROLL}
        {
            let j = first + ${u}u;
            let index = indices[place + min(j, length - 1u) * params.index_step];
            bad |= u32(index) >= params.size;
            if index == mine && j < length {
                sum += load(at + j * params.x_step);
            }
        }
#end
    }
    if bad {
        report_bad_index();
    }
    keep(i, sum);
#else
    let index = u32(indices[place]);
    if index < params.size {
        keep(i, load(at + index * params.x_step));
    } else {
        report_bad_index();
        keep(i, Item());
    }
#endif
#endif
#endif
#endif
}
