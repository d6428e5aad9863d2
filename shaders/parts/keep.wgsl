// Stores the elements j.. of the row at `base`, where there are any.
fn keep(base: u32, j: u32, v: vec4<f32>) {
#if VEC
#if WHOLE
    store4((base + j) / 4u, v);
#else
    if j < params.n {
        store4((base + j) / 4u, v);
    }
#endif
#else
#for c in 0..4
    if j + ${c}u < params.n {
        store(base + (j + ${c}u) * apart(), v[${c}]);
    }
#end
#endif
}
