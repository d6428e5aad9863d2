//! Drawing a graph in layers, after [Sugiyama, Tagawa and Toda 1981](https://doi.org/10.1109/TSMC.1981.4308636): the longest
//! path gives the layers, sweeps of barycentres the order within each, and places follow by least squares.

use std::collections::{HashMap, VecDeque};

/// Space between neighbours in a layer, and between layers.
const BESIDE: f64 = 22.0;
const BETWEEN: f64 = 44.0;
/// The width of a line's bend. Items are wider.
const BEND: f64 = 2.0;
/// Points that edges over several layers may pass through, in all: beyond it long ones are drawn straight.
const MOST_BENDS: usize = 20_000;
const ORDER_SWEEPS: usize = 16;
const PLACE_SWEEPS: usize = 60;

pub struct Layout {
    /// Centres, by item.
    pub places: Vec<(f64, f64)>,
    pub width: f64,
    pub height: f64,
    /// Lines from item to item, downwards. Those of one producer share their way as long as they can.
    pub lines: Vec<Line>,
}

/// One piece of an edge, between neighbouring layers.
pub struct Line {
    pub from: (f64, f64),
    pub to: (f64, f64),
    pub producer: usize,
    /// `None` where it ends in a bend.
    pub consumer: Option<usize>,
}

/// An item, or a bend in the edges of one.
struct Spot {
    layer: usize,
    width: f64,
    above: Vec<usize>,
    below: Vec<usize>,
    x: f64,
}

impl Spot {
    fn is_bend(&self) -> bool {
        self.width <= BEND
    }
}

/// `sizes` by item; `edges` from producer to consumer, each once, without circles.
pub fn layout(sizes: &[(f64, f64)], edges: &[(usize, usize)]) -> Layout {
    let n = sizes.len();
    let rank = ranks(n, edges);
    let layers = rank.iter().max().map_or(0, |r| r + 1);
    // Producers on top: the highest rank is layer 0.
    let mut spots: Vec<Spot> = (0..n)
        .map(|i| Spot {
            layer: layers - 1 - rank[i],
            width: sizes[i].0,
            above: vec![],
            below: vec![],
            x: 0.0,
        })
        .collect();
    let pieces = bend(&mut spots, edges);
    for &(from, to) in &pieces {
        spots[from].below.push(to);
        spots[to].above.push(from);
    }
    let mut rows: Vec<Vec<usize>> = vec![vec![]; layers];
    for (i, spot) in spots.iter().enumerate() {
        rows[spot.layer].push(i);
    }
    order(&mut rows, &spots);
    place(&rows, &mut spots);
    finish(sizes, &rows, &spots, &pieces, edges)
}

/// The longest way down from each.
fn ranks(n: usize, edges: &[(usize, usize)]) -> Vec<usize> {
    let mut producers: Vec<Vec<usize>> = vec![vec![]; n];
    let mut waiting = vec![0; n];
    for &(from, to) in edges {
        producers[to].push(from);
        waiting[from] += 1;
    }
    let mut rank = vec![0; n];
    let mut queue: VecDeque<usize> = (0..n).filter(|&i| waiting[i] == 0).collect();
    while let Some(i) = queue.pop_front() {
        for &p in &producers[i] {
            rank[p] = rank[p].max(rank[i] + 1);
            waiting[p] -= 1;
            if waiting[p] == 0 {
                queue.push_back(p);
            }
        }
    }
    rank
}

/// Puts bends where edges pass through layers, one for all edges of a producer, and gives the pieces.
fn bend(spots: &mut Vec<Spot>, edges: &[(usize, usize)]) -> Vec<(usize, usize)> {
    let mut last: HashMap<usize, usize> = HashMap::new();
    for &(from, to) in edges {
        let reach = last.entry(from).or_default();
        *reach = spots[to].layer.max(*reach);
    }
    // The short ones first, if not all can have bends.
    let mut trunks: Vec<(usize, usize)> = last.iter().map(|(&p, &l)| (l - spots[p].layer, p)).collect();
    trunks.sort_unstable();
    let mut bends: HashMap<(usize, usize), usize> = HashMap::new();
    let mut pieces = vec![];
    for (span, producer) in trunks {
        if bends.len() + span > MOST_BENDS {
            break;
        }
        let mut above = producer;
        for layer in spots[producer].layer + 1..spots[producer].layer + span {
            spots.push(Spot { layer, width: BEND, above: vec![], below: vec![], x: 0.0 });
            bends.insert((producer, layer), spots.len() - 1);
            pieces.push((above, spots.len() - 1));
            above = spots.len() - 1;
        }
    }
    for &(from, to) in edges {
        // Without bends it is one straight piece, and does not count for the order.
        match bends.get(&(from, spots[to].layer - 1)) {
            Some(&bend) => pieces.push((bend, to)),
            None if spots[from].layer + 1 == spots[to].layer => pieces.push((from, to)),
            None => {}
        }
    }
    pieces
}

/// Each row in the order of the means of its neighbours' positions, from above and from below in turn.
fn order(rows: &mut [Vec<usize>], spots: &[Spot]) {
    let mut position = vec![0.0; spots.len()];
    let number = |row: &[usize], position: &mut [f64]| {
        for (i, &s) in row.iter().enumerate() {
            position[s] = i as f64 - (row.len() as f64 - 1.0) / 2.0;
        }
    };
    rows.iter().for_each(|row| number(row, &mut position));
    for sweep in 0..ORDER_SWEEPS {
        let up = sweep % 2 == 0;
        for k in 0..rows.len() {
            let row = if up { rows.len() - 1 - k } else { k };
            let key = |s: usize| {
                let near = if up { &spots[s].below } else { &spots[s].above };
                mean(near.iter().map(|&t| position[t])).unwrap_or(position[s])
            };
            let mut keyed: Vec<(f64, usize)> = rows[row].iter().map(|&s| (key(s), s)).collect();
            keyed.sort_by(|a, b| a.0.total_cmp(&b.0));
            rows[row] = keyed.into_iter().map(|(_, s)| s).collect();
            number(&rows[row], &mut position);
        }
    }
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (sum, n) = values.fold((0.0, 0usize), |(sum, n), v| (sum + v, n + 1));
    (n > 0).then(|| sum / n as f64)
}

/// Moves every row as near to its neighbours' means as its order and its widths allow.
fn place(rows: &[Vec<usize>], spots: &mut [Spot]) {
    for sweep in 0..PLACE_SWEEPS {
        for k in 0..rows.len() {
            let up = sweep % 2 == 0;
            let row = &rows[if up { rows.len() - 1 - k } else { k }];
            let wishes: Vec<(f64, f64)> = (row.iter())
                .map(|&s| {
                    let spot = &spots[s];
                    // Next to items bends do not count, or rows of items would lean towards what passes by.
                    let at = |near: &[usize]| {
                        let of = |bends: bool| {
                            mean(near.iter().filter(|&&t| bends || !spots[t].is_bend()).map(|&t| spots[t].x))
                        };
                        of(false).or_else(|| of(true))
                    };
                    let (below, above) = (at(&spot.below), at(&spot.above));
                    let wish = match (below, above) {
                        // First one side alone, to let things move; in the end the middle.
                        (Some(b), Some(a)) if sweep + 20 > PLACE_SWEEPS => (a + b) / 2.0,
                        (Some(b), _) if up => b,
                        (_, Some(a)) if !up => a,
                        (b, a) => b.or(a).unwrap_or(spot.x),
                    };
                    // Bends come out straight.
                    (wish, if spot.is_bend() { 4.0 } else { 1.0 })
                })
                .collect();
            let widths: Vec<f64> = row.iter().map(|&s| spots[s].width).collect();
            for (&s, x) in row.iter().zip(spread(&wishes, &widths)) {
                spots[s].x = x;
            }
        }
    }
}

/// Places in order, `BESIDE` apart, with the least sum of squared distances (by weight) from the wishes: what overlaps
/// is pooled and set at its mean.
fn spread(wishes: &[(f64, f64)], widths: &[f64]) -> Vec<f64> {
    let mut offsets = vec![0.0; widths.len()];
    for i in 1..widths.len() {
        offsets[i] = offsets[i - 1] + (widths[i - 1] + widths[i]) / 2.0 + BESIDE;
    }
    // Mean, weight, count.
    let mut pools: Vec<(f64, f64, usize)> = vec![];
    for (&(wish, weight), offset) in wishes.iter().zip(&offsets) {
        let mut pool = (wish - offset, weight, 1);
        while let Some(&(mean, w, count)) = pools.last()
            && mean > pool.0
        {
            pool = ((mean * w + pool.0 * pool.1) / (w + pool.1), w + pool.1, count + pool.2);
            pools.pop();
        }
        pools.push(pool);
    }
    let bases = pools.iter().flat_map(|&(mean, _, count)| std::iter::repeat_n(mean, count));
    bases.zip(offsets).map(|(base, offset)| base + offset).collect()
}

fn finish(
    sizes: &[(f64, f64)],
    rows: &[Vec<usize>],
    spots: &[Spot],
    pieces: &[(usize, usize)],
    edges: &[(usize, usize)],
) -> Layout {
    let n = sizes.len();
    let left = spots.iter().map(|s| s.x - s.width / 2.0).fold(f64::INFINITY, f64::min).min(f64::MAX);
    let right = spots.iter().map(|s| s.x + s.width / 2.0).fold(f64::NEG_INFINITY, f64::max);
    let tall = |row: &Vec<usize>| row.iter().filter(|&&s| s < n).map(|&s| sizes[s].1).fold(0.0, f64::max);
    let mut tops = vec![];
    let mut height = 0.0;
    for row in rows {
        tops.push((height, tall(row)));
        height += tall(row) + BETWEEN;
    }
    let x = |s: usize| spots[s].x - left;
    // Where a line leaves or meets an item; a bend runs straight through its layer.
    let bottom = |s: usize| {
        let (top, tall) = tops[spots[s].layer];
        (x(s), if s < n { top + (tall + sizes[s].1) / 2.0 } else { top + tall })
    };
    let top = |s: usize| {
        let (top, tall) = tops[spots[s].layer];
        (x(s), if s < n { top + (tall - sizes[s].1) / 2.0 } else { top })
    };
    // Producers of bends: pieces come from the top down.
    let mut owner: Vec<usize> = (0..spots.len()).collect();
    let mut lines = vec![];
    let mut drawn = std::collections::HashSet::new();
    for &(from, to) in pieces {
        let producer = owner[from];
        let consumer = (to < n).then_some(to);
        if let Some(consumer) = consumer {
            drawn.insert((producer, consumer));
        } else {
            owner[to] = producer;
            lines.push(Line { from: top(to), to: bottom(to), producer, consumer: None });
        }
        lines.push(Line { from: bottom(from), to: top(to), producer, consumer });
    }
    for &(from, to) in edges.iter().filter(|edge| !drawn.contains(edge)) {
        lines.push(Line { from: bottom(from), to: top(to), producer: from, consumer: Some(to) });
    }
    let places = (0..n)
        .map(|s| {
            let (top, tall) = tops[spots[s].layer];
            (x(s), top + tall / 2.0)
        })
        .collect();
    let width = if n == 0 { 0.0 } else { right - left };
    Layout { places, width, height: (height - BETWEEN).max(0.0), lines }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A graph with edges from higher numbers to lower ones.
    fn random(n: usize, seed: u64) -> Vec<(usize, usize)> {
        let mut state = seed;
        let mut below = |n: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % n
        };
        let mut edges: Vec<(usize, usize)> =
            (1..n).flat_map(|i| (0..1 + i % 2).map(|_| (i, below(i))).collect::<Vec<_>>()).collect();
        edges.sort_unstable();
        edges.dedup();
        edges
    }

    #[test]
    fn nothing_overlaps_and_all_lines_go_down() {
        for (n, seed) in [(0, 0), (1, 1), (2, 2), (40, 3), (400, 4)] {
            let edges = random(n, seed);
            let sizes: Vec<(f64, f64)> = (0..n).map(|i| (60.0 + (i % 7) as f64 * 20.0, 40.0)).collect();
            let found = layout(&sizes, &edges);
            assert_eq!(found.places.len(), n);
            for i in 0..n {
                let (x, y) = found.places[i];
                assert!(x - sizes[i].0 / 2.0 >= -1e-6 && x + sizes[i].0 / 2.0 <= found.width + 1e-6);
                assert!((20.0 - 1e-6..=found.height - 20.0 + 1e-6).contains(&y));
                for j in 0..i {
                    let (u, v) = found.places[j];
                    let apart = (sizes[i].0 + sizes[j].0) / 2.0;
                    assert!((y - v).abs() >= 40.0 || (x - u).abs() >= apart, "{i} and {j} of {n} overlap");
                }
            }
            for line in &found.lines {
                assert!(line.from.1 <= line.to.1, "up");
            }
            // Every edge arrives.
            for &(from, to) in &edges {
                assert!(found.lines.iter().any(|l| l.producer == from && l.consumer == Some(to)));
                assert!(found.places[from].1 < found.places[to].1);
            }
        }
    }

    #[test]
    fn a_chain_is_straight() {
        let edges: Vec<(usize, usize)> = (1..10).map(|i| (i, i - 1)).collect();
        let found = layout(&[(80.0, 40.0); 10], &edges);
        assert!(found.places.iter().all(|p| (p.0 - found.places[0].0).abs() < 1e-6));
    }

    #[test]
    fn long_ways_for_many_do_not_take_for_ever() {
        // Two thousand layers, all of which the top one reaches.
        let n = 2000;
        let mut edges: Vec<(usize, usize)> = (1..n).map(|i| (i, i - 1)).collect();
        edges.extend((0..n - 2).map(|i| (n - 1, i)));
        edges.extend((3..n - 1).step_by(3).map(|i| (i, 0)));
        let found = layout(&vec![(80.0, 40.0); n], &edges);
        assert!(found.lines.len() < MOST_BENDS * 2 + edges.len() * 2);
    }
}
