// Fours as two words of 64 bits: software adapters pay for each word that a lane reads or writes, whatever its size.

fn from_pairs(v: vec2<u64>) -> vec4<u32> {
    return vec4<u32>(u32(v.x), u32(v.x >> 32u), u32(v.y), u32(v.y >> 32u));
}

fn to_pairs(v: vec4<u32>) -> vec2<u64> {
    return vec2<u64>(u64(v.x) | (u64(v.y) << 32u), u64(v.z) | (u64(v.w) << 32u));
}
