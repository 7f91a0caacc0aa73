//! The latency over time as a line of text. Pure.

/// Eight heights.
const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// One column for each value: the highest is a full one, a value of zero (nothing measured) a blank. The scale is
/// logarithmic over four decades below the highest, as latencies are.
pub fn picture(values: &[f64]) -> String {
    let highest = values.iter().copied().fold(0.0, f64::max);
    values.iter().map(|value| column(*value, highest)).collect()
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "between 0 and 7"
)]
fn column(value: f64, highest: f64) -> char {
    if value <= 0.0 || highest <= 0.0 {
        return ' ';
    }
    let decades_below = (highest / value).log10().clamp(0.0, 4.0);
    let height = (7.0 * (1.0 - decades_below / 4.0)).round();
    BARS[(height as usize).min(7)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heights_are_logarithmic_and_nothing_is_blank() {
        assert_eq!(picture(&[1.0, 0.1, 0.01, 0.000_001, 0.0]), "█▆▅▁ ");
        assert_eq!(picture(&[0.0, 0.0]), "  ");
        assert_eq!(picture(&[]), "");
        assert_eq!(picture(&[5.0, 5.0]), "██");
    }
}
