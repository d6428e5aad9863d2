//! Where values lie: at offsets in a few areas, decided when all lifetimes are known.
//!
//! What outlives the plan has a buffer of its own, in which others may lie before. The rest is packed, the largest
//! first, each where an area must grow least, and there into the tightest gap (greedy by size:
//! [Pisarchyk and Lee 2020](https://arxiv.org/abs/2001.03288)). Where a buffer cannot be read and written by
//! one kernel, not even in different parts, an area takes only values that never meet in that way.

use std::cmp::Reverse;

use crate::backend::Areas;

/// A time after every step.
pub const FOR_EVER: usize = usize::MAX;

/// A place for values that lie there one after another.
#[derive(Clone, Default, Debug)]
pub struct Tenant {
    pub bytes: usize,
    /// The step that writes the first; steps are numbered from 1, and the leaves are there at 0.
    pub from: usize,
    /// The last step that needs the last.
    pub to: usize,
    /// The commands that read and write it.
    pub reads: Vec<usize>,
    pub writes: Vec<usize>,
}

/// Part of an area.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Place {
    /// The leaves' buffers come first.
    pub area: usize,
    pub at: usize,
    pub bytes: usize,
}

/// A buffer to be allocated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Area {
    pub bytes: usize,
    /// For a value that may stay longer than the run, or that is as large as a buffer may be.
    pub own: bool,
}

#[derive(Clone)]
struct Ground {
    area: Area,
    /// Grows with what is put there.
    grows: bool,
    taken: Vec<(Place, usize)>,
    /// Of each command, where they matter: whether it reads from here (1) or writes to here (2).
    uses: Vec<u8>,
}

const READ: u8 = 1;
const WRITTEN: u8 = 2;

impl Ground {
    fn new(bytes: usize, grows: bool, own: bool) -> Ground {
        Ground { area: Area { bytes, own }, grows, taken: vec![], uses: vec![] }
    }

    /// Whether no command would read and write here.
    fn suits(&self, tenant: &Tenant) -> bool {
        let none = |commands: &[usize], bit: u8| {
            commands.iter().all(|&c| self.uses.get(c).is_none_or(|uses| uses & bit == 0))
        };
        none(&tenant.reads, WRITTEN) && none(&tenant.writes, READ)
    }
}

/// Tenants that are packed in several orders, of which the best counts. More take one order: planning shall not take
/// longer than it must.
const FEW: usize = 600;

/// The greatest comes first.
type Rank = fn(&Tenant) -> (usize, usize);

/// The place of each tenant, and the areas after the leaves' buffers.
pub fn places(tenants: &[Tenant], leaves: usize, rules: &Areas) -> (Vec<Place>, Vec<Area>) {
    let first = lasting(tenants, leaves, rules);
    let mut passing: Vec<usize> = (leaves..tenants.len()).filter(|&t| tenants[t].to != FOR_EVER).collect();
    let orders: [Rank; 4] = [
        |t| (t.bytes, t.to),
        |t| (t.bytes, usize::MAX - t.from),
        |t| (t.bytes.saturating_mul(t.to - t.from + 1), t.to),
        |t| (t.bytes.saturating_mul(t.bytes).saturating_mul(t.to - t.from + 1), t.to),
    ];
    let tried = if passing.len() <= FEW { orders.len() } else { 1 };
    let mut best: Option<(usize, Packing)> = None;
    for order in &orders[..tried] {
        passing.sort_by_key(|&t| Reverse(order(&tenants[t])));
        let mut packing = first.clone();
        passing.iter().for_each(|&t| packing.pack(tenants, t));
        let bytes = packing.grounds[leaves..].iter().map(|g| g.area.bytes).sum();
        if best.as_ref().is_none_or(|(least, _)| bytes < *least) {
            best = Some((bytes, packing));
        }
    }
    let packing = best.map_or(first, |(_, packing)| packing);
    (packing.places, packing.grounds[leaves..].iter().map(|g| g.area).collect())
}

#[derive(Clone)]
struct Packing<'a> {
    rules: &'a Areas,
    places: Vec<Place>,
    grounds: Vec<Ground>,
}

/// Leaves, and what stays.
fn lasting<'a>(tenants: &[Tenant], leaves: usize, rules: &'a Areas) -> Packing<'a> {
    let mut packing = Packing { rules, places: vec![Place::default(); tenants.len()], grounds: vec![] };
    for (i, leaf) in tenants[..leaves].iter().enumerate() {
        packing.grounds.push(Ground::new(leaf.bytes, false, true));
        packing.put(tenants, i, i, 0);
    }
    for (t, tenant) in tenants.iter().enumerate().skip(leaves).filter(|(_, t)| t.to == FOR_EVER) {
        // It may stay long, and would keep all of a larger buffer.
        let given = packing.grounds[..leaves].iter().position(|g| {
            let free = || g.taken.iter().all(|(_, other)| tenants[*other].to < tenant.from);
            g.area.bytes == tenant.bytes && free() && packing.suits(g, tenant)
        });
        let ground = given.unwrap_or_else(|| {
            packing.grounds.push(Ground::new(tenant.bytes, false, true));
            packing.grounds.len() - 1
        });
        packing.put(tenants, t, ground, 0);
    }
    packing
}

impl Areas {
    /// How many areas are opened before they must be.
    fn enough(&self) -> usize {
        if self.apart { 4 } else { 1 }
    }
}

impl Packing<'_> {
    fn suits(&self, ground: &Ground, tenant: &Tenant) -> bool {
        !self.rules.apart || ground.suits(tenant)
    }

    fn put(&mut self, tenants: &[Tenant], t: usize, area: usize, at: usize) {
        let tenant = &tenants[t];
        self.places[t] = Place { area, at, bytes: tenant.bytes };
        let ground = &mut self.grounds[area];
        ground.taken.push((self.places[t], t));
        if ground.grows {
            let end = (at + tenant.bytes).next_multiple_of(self.rules.align);
            ground.area.bytes = ground.area.bytes.max(end);
        }
        if self.rules.apart {
            let marks = tenant.reads.iter().map(|&c| (c, READ));
            for (command, bit) in marks.chain(tenant.writes.iter().map(|&c| (c, WRITTEN))) {
                if ground.uses.len() <= command {
                    ground.uses.resize(command + 1, 0);
                }
                ground.uses[command] |= bit;
            }
        }
    }

    fn growing(&self) -> usize {
        self.grounds.iter().filter(|g| g.grows).count()
    }

    /// Finds a place for what does not stay.
    fn pack(&mut self, tenants: &[Tenant], t: usize) {
        let tenant = &tenants[t];
        // What is read and written in whole words of 16 bytes may reach so far.
        let bytes = tenant.bytes.next_multiple_of(16).max(16);
        if bytes > self.rules.most {
            self.grounds.push(Ground::new(tenant.bytes, false, true));
            return self.put(tenants, t, self.grounds.len() - 1, 0);
        }
        // How much an area grows, how much of a gap is left, and where.
        let mut best: Option<(usize, usize, usize, usize)> = None;
        let mut live: Vec<(usize, usize)> = vec![];
        for (i, ground) in self.grounds.iter().enumerate() {
            let size = ground.area.bytes;
            if !ground.grows && size < tenant.bytes || !self.suits(ground, tenant) {
                continue;
            }
            live.clear();
            let meets = |other: &Tenant| other.from <= tenant.to && tenant.from <= other.to;
            live.extend(
                (ground.taken.iter().filter(|(_, other)| meets(&tenants[*other])))
                    .map(|(p, _)| (p.at, (p.at + p.bytes.max(1)).next_multiple_of(self.rules.align))),
            );
            live.sort_unstable();
            let mut at = 0;
            let ends = if ground.grows { size } else { size.next_multiple_of(16) };
            for (start, end) in live.iter().copied().chain([(ends, usize::MAX)]) {
                let fits = start >= at + bytes && (ground.grows || at + tenant.bytes <= size);
                let last = end == usize::MAX;
                let grows = if fits { 0 } else { (at + bytes).saturating_sub(size) };
                let may_grow = last && ground.grows && at + bytes <= self.rules.most;
                if fits || may_grow {
                    let gap = if fits { start - at - bytes } else { 0 };
                    best = best.min(Some((grows, gap, i, at))).or(Some((grows, gap, i, at)));
                }
                at = at.max(end);
            }
        }
        let (area, at) = match best {
            // Where it would share nothing, an area of its own may later take what does not suit the others.
            Some((grows, _, area, at)) if grows < bytes || self.growing() >= self.rules.enough() => {
                (area, at)
            }
            _ => {
                self.grounds.push(Ground::new(0, true, false));
                (self.grounds.len() - 1, 0)
            }
        };
        self.put(tenants, t, area, at);
    }
}

/// The most bytes that tenants need at one time, all of them and those that are no leaves.
pub fn needed(tenants: &[Tenant], leaves: usize) -> (usize, usize) {
    let most = |tenants: &[Tenant]| {
        let last = tenants.iter().map(|t| t.from.max(if t.to == FOR_EVER { 0 } else { t.to })).max();
        // At each step, what begins and what has ended.
        let mut change = vec![0isize; last.unwrap_or(0) + 2];
        for t in tenants {
            change[t.from] += t.bytes as isize;
            if t.to != FOR_EVER {
                change[t.to + 1] -= t.bytes as isize;
            }
        }
        change
            .iter()
            .scan(0, |now, c| {
                *now += c;
                Some(*now)
            })
            .max()
            .unwrap_or(0) as usize
    };
    (most(tenants), most(&tenants[leaves..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: [Areas; 2] =
        [Areas { apart: false, align: 64, most: 1 << 30 }, Areas { apart: true, align: 256, most: 4096 }];

    #[test]
    fn tenants_share_areas_but_never_at_one_time() {
        let mut random = 1u64;
        let mut below = |n: usize| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) as usize % n
        };
        for round in 0..400 {
            let rules = &RULES[round % 2];
            let leaves = below(4);
            let tenants: Vec<Tenant> = (0..leaves + below(40))
                .map(|i| {
                    let from = if i < leaves { 0 } else { 1 + below(30) };
                    let to = if below(5) == 0 { FOR_EVER } else { from + below(8) };
                    let reads = (0..below(4)).map(|_| from + below(8)).collect();
                    Tenant { bytes: 4 * below(1 + 5 * round), from, to, reads, writes: vec![from] }
                })
                .collect();
            let (places, areas) = places(&tenants, leaves, rules);
            let size = |area: usize| match area.checked_sub(leaves) {
                Some(own) => areas[own].bytes,
                None => tenants[area].bytes,
            };
            for (i, (a, p)) in tenants.iter().zip(&places).enumerate() {
                assert_eq!(p.bytes, a.bytes);
                assert!(p.at + p.bytes <= size(p.area));
                assert_eq!(p.at % rules.align, 0);
                assert!(i >= leaves || (p.area, p.at) == (i, 0));
                assert!(a.to != FOR_EVER || size(p.area) == a.bytes, "kept, in a larger buffer");
                let lasts = p.area < leaves || areas[p.area - leaves].own;
                assert!(a.to != FOR_EVER || lasts, "kept, in what serves other runs");
                for (j, (b, q)) in tenants.iter().zip(&places).enumerate().skip(i + 1) {
                    if p.area != q.area {
                        continue;
                    }
                    let reach = |p: &Place| p.at + p.bytes.next_multiple_of(16).max(16);
                    let apart = reach(p) <= q.at || reach(q) <= p.at;
                    assert!(apart || a.to < b.from || b.to < a.from, "{i} and {j} at one time");
                    let meet = |x: &[usize], y: &[usize]| x.iter().any(|c| y.contains(c));
                    let clash = meet(&a.reads, &b.writes) || meet(&a.writes, &b.reads);
                    assert!(!rules.apart || !clash, "{i} is read where {j} is written");
                }
            }
        }
    }

    #[test]
    fn a_training_step_takes_what_is_alive() {
        // Forward, each layer's output is kept for the backward pass; there, gradients of the outputs take turns.
        let layers = [64, 32, 16, 8];
        let last = 2 * layers.len();
        let mut tenants = vec![];
        for (i, &kib) in layers.iter().enumerate() {
            let step = |from, to, reads| Tenant { bytes: kib << 10, from, to, reads, writes: vec![from] };
            tenants.push(step(i + 1, last - i, vec![i + 2, last - i]));
            tenants.push(step(last - i, last - i + 1, vec![last - i + 1]));
        }
        for (rules, percent) in RULES.iter().zip([100, 125]) {
            let rules = Areas { most: 1 << 30, ..rules.clone() };
            let (_, areas) = places(&tenants, 0, &rules);
            let (taken, least) = (areas.iter().map(|a| a.bytes).sum::<usize>(), needed(&tenants, 0).0);
            assert!(100 * taken <= percent * least, "{taken} for {least}");
        }
    }
}
