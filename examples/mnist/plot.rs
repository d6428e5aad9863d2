//! The picture of a training run: curves, and digits with what the model took them for.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{FontStyle, register_font};
use wgrad::data::Dataset;

use crate::checkpoint::Progress;
use crate::digits::{Digits, Results, SIDE};

type Area<'a> = DrawingArea<BitMapBackend<'a>, Shift>;

const SIZE: (u32, u32) = (1440, 1180);
const PAPER: RGBColor = RGBColor(252, 252, 250);
const INK: RGBColor = RGBColor(38, 42, 51);
const FAINT: RGBColor = RGBColor(122, 128, 140);
const LINES: RGBColor = RGBColor(228, 229, 226);
const BLUE: RGBColor = RGBColor(42, 98, 175);
const GREEN: RGBColor = RGBColor(31, 138, 91);
const RED: RGBColor = RGBColor(200, 58, 52);
const PLAIN: &str = "plain";
const BOLD: &str = "bold";

const COLUMNS: usize = 14;
const ROWS: usize = 2;

pub fn draw(
    path: &Path,
    progress: &Progress,
    steps: usize,
    results: &Results,
    digits: &Digits,
) -> Result<()> {
    let fonts: [(&str, &'static [u8]); 2] = [
        (PLAIN, include_bytes!("../data/font/Roboto-Regular.ttf")),
        (BOLD, include_bytes!("../data/font/Roboto-Medium.ttf")),
    ];
    for (name, bytes) in fonts {
        register_font(name, FontStyle::Normal, bytes).map_err(|_| anyhow!("the font {name} is broken"))?;
    }
    let root = BitMapBackend::new(path, SIZE).into_drawing_area();
    root.fill(&PAPER)?;
    let root = root.margin(36, 28, 48, 48);
    let (head, rest) = root.split_vertically(76);
    let (charts, samples) = rest.split_vertically(456);
    let title = format!("MNIST: {:.2} % of the test set read right", results.accuracy * 100.0);
    head.draw(&Text::new(title, (0, 0), (BOLD, 34).into_font().color(&INK)))?;
    let parameters = "three layers, 784 - 512 - 256 - 10, trained with wgrad";
    head.draw(&Text::new(parameters, (0, 42), (PLAIN, 19).into_font().color(&FAINT)))?;

    let charts = charts.margin(0, 36, 0, 0);
    let (left, right) = charts.split_horizontally(charts.dim_in_pixel().0 * 58 / 100);
    losses(&left.margin(0, 0, 0, 28), progress, steps)?;
    accuracies(&right.margin(0, 0, 28, 0), progress)?;
    grids(&samples, results, digits)?;
    root.present()?;
    Ok(())
}

fn heading(area: &Area<'_>, text: &str) -> Result<()> {
    area.draw(&Text::new(text.to_string(), (0, 0), (BOLD, 21).into_font().color(&INK)))?;
    Ok(())
}

/// The loss over epochs, on a logarithmic scale: measured, and averaged over neighbours.
fn losses(area: &Area<'_>, progress: &Progress, steps: usize) -> Result<()> {
    heading(area, "Training loss")?;
    let points: Vec<(f64, f64)> = (progress.losses.iter())
        .map(|&[step, loss]| (f64::from(step) / steps as f64, f64::from(loss).max(1e-6)))
        .collect();
    let last = points.last().map_or(1.0, |p| p.0);
    let low = points.iter().map(|p| p.1).fold(f64::INFINITY, f64::min);
    let high = points.iter().map(|p| p.1).fold(1e-6, f64::max);
    let (low, high) = if low < high { (low * 0.8, high * 1.2) } else { (1e-2, 1.0) };
    let mut chart = ChartBuilder::on(&area.margin(38, 0, 0, 0))
        .x_label_area_size(46)
        .y_label_area_size(58)
        .build_cartesian_2d(0.0..last, (low..high).log_scale())?;
    let labels = |v: &f64| if *v >= 0.01 { format!("{v:.2}") } else { format!("{v:.0e}") };
    let mut mesh = chart.configure_mesh();
    mesh.bold_line_style(LINES).light_line_style(LINES.mix(0.5)).axis_style(LINES);
    mesh.label_style((PLAIN, 17).into_font().color(&FAINT))
        .axis_desc_style((PLAIN, 17).into_font().color(&FAINT));
    mesh.x_desc("epoch").y_label_formatter(&labels).x_labels(8).y_labels(6).x_max_light_lines(1).draw()?;
    chart.draw_series(LineSeries::new(points.iter().copied(), BLUE.mix(0.35).stroke_width(1)))?;
    let near = (points.len() / 24).clamp(1, 8);
    let smooth = (0..points.len()).map(|i| {
        // As many on either side, so that the ends are not drawn to one.
        let reach = near.min(i).min(points.len() - 1 - i);
        let window = &points[i - reach..=i + reach];
        (points[i].0, (window.iter().map(|p| p.1.ln()).sum::<f64>() / window.len() as f64).exp())
    });
    chart.draw_series(LineSeries::new(smooth, BLUE.stroke_width(3)))?;
    Ok(())
}

/// The accuracy on the test set after each epoch.
fn accuracies(area: &Area<'_>, progress: &Progress) -> Result<()> {
    heading(area, "Test accuracy, %")?;
    let points: Vec<(f64, f64)> =
        progress.accuracies.iter().map(|&[epoch, a]| (f64::from(epoch), f64::from(a) * 100.0)).collect();
    let last = points.last().map_or(1.0, |p| p.0);
    let low = points.iter().map(|p| p.1).fold(100.0, f64::min);
    let low = (low - (100.0 - low) * 0.35).max(0.0);
    let mut chart = ChartBuilder::on(&area.margin(38, 0, 0, 0))
        .x_label_area_size(46)
        .y_label_area_size(58)
        .build_cartesian_2d(0.5..last + 0.5, low..100.0)?;
    let whole = |v: &f64| if v.fract() == 0.0 { format!("{v:.0}") } else { String::new() };
    let mut mesh = chart.configure_mesh();
    mesh.bold_line_style(LINES).light_line_style(TRANSPARENT).axis_style(LINES).disable_x_mesh();
    mesh.label_style((PLAIN, 17).into_font().color(&FAINT))
        .axis_desc_style((PLAIN, 17).into_font().color(&FAINT));
    mesh.x_desc("epoch").x_label_formatter(&whole).y_label_formatter(&|v| format!("{v:.1}"));
    mesh.x_labels(if last <= 10.0 { last as usize * 2 + 1 } else { 10 }).y_labels(6).draw()?;
    chart.draw_series(LineSeries::new(points.iter().copied(), GREEN.stroke_width(3)))?;
    chart.draw_series(points.iter().map(|&p| Circle::new(p, 6, GREEN.filled())))?;
    let style = (BOLD, 18).into_font().color(&INK).pos(Pos::new(HPos::Center, VPos::Bottom));
    let few = points.len() <= 6;
    chart.draw_series(points.iter().enumerate().filter(|(i, _)| few || i + 1 == points.len()).map(
        |(_, &(x, y))| EmptyElement::at((x, y)) + Text::new(format!("{y:.2}"), (0, -12), style.clone()),
    ))?;
    Ok(())
}

/// Digits that were read right, and the worst misses.
fn grids(area: &Area<'_>, results: &Results, digits: &Digits) -> Result<()> {
    let right = |i: &usize| results.guesses[*i] == i32::from(digits.label(*i));
    let (hits, mut misses): (Vec<usize>, Vec<usize>) = (0..digits.len()).partition(right);
    misses.sort_by(|&a, &b| results.sureness[b].total_cmp(&results.sureness[a]));
    let (top, bottom) = area.split_vertically(area.dim_in_pixel().1 / 2);
    grid(&top, "The first digits of the test set that were read right", &hits, results, digits)?;
    let title =
        format!("The surest of {} mistakes: taken for what is below, the label in brackets", misses.len());
    grid(&bottom, &title, &misses, results, digits)
}

fn grid(area: &Area<'_>, title: &str, which: &[usize], results: &Results, digits: &Digits) -> Result<()> {
    heading(area, title)?;
    let area = area.margin(34, 0, 0, 0);
    let (width, height) = area.dim_in_pixel();
    let (cell, line) = (width as f64 / COLUMNS as f64, height as f64 / ROWS as f64);
    let caption = 24.0;
    let pixel =
        ((line - caption - 4.0) / SIDE as f64).min((cell - 8.0) / SIDE as f64).floor().max(1.0) as i32;
    for (n, &i) in which.iter().take(COLUMNS * ROWS).enumerate() {
        let (column, row) = (n % COLUMNS, n / COLUMNS);
        let left = (column as f64 * cell) as i32;
        let top = (row as f64 * line) as i32;
        let side = SIDE as i32 * pixel;
        for (k, &ink) in digits.image(i).iter().enumerate() {
            let (x, y) = (left + (k % SIDE) as i32 * pixel, top + (k / SIDE) as i32 * pixel);
            // White paper to dark ink.
            let mix = |ink_part: u8| (255.0 - f64::from(ink) / 255.0 * (255.0 - f64::from(ink_part))) as u8;
            let color = RGBColor(mix(INK.0), mix(INK.1), mix(INK.2));
            // By hand: filled rectangles leave their last row and column out, and digits would be dotted.
            for (dx, dy) in (0..pixel * pixel).map(|p| (p % pixel, p / pixel)) {
                area.draw_pixel((x + dx, y + dy), &color)?;
            }
        }
        area.draw(&Rectangle::new([(left, top), (left + side, top + side)], LINES.stroke_width(1)))?;
        let (guess, label) = (results.guesses[i], i32::from(digits.label(i)));
        let (text, color) =
            if guess == label { (format!("{guess}"), GREEN) } else { (format!("{guess}  ({label})"), RED) };
        let style = (BOLD, 18).into_font().color(&color).pos(Pos::new(HPos::Center, VPos::Top));
        area.draw(&Text::new(text, (left + side / 2, top + side + 4), style))?;
    }
    Ok(())
}
