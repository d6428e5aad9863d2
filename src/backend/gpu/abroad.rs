//! For tests alone: what naga makes of a kernel on platforms that the tests do not run on.

use super::naga::{back, front, valid};
use std::fmt::Display;

/// Translates a kernel as wgpu would for Metal and for Direct3D 12. That finds what naga cannot say there; whether those compilers
/// take its words is not known here.
pub fn check(wgsl: &str) -> Result<(), String> {
    let fault = |what: &str, e: &dyn Display| format!("{what}: {e}\n{wgsl}");
    let module = front::wgsl::parse_str(wgsl).map_err(|e| fault("WGSL", &e))?;
    let all = valid::Capabilities::all();
    let info = valid::Validator::new(valid::ValidationFlags::all(), all).validate(&module);
    let info = info.map_err(|e| fault("WGSL", &e))?;

    // Kernels with cooperative matrices are for Vulkan alone.
    if wgsl.contains("coop_mat") {
        return Ok(());
    }
    // That of macOS 12.
    let options = back::msl::Options { lang_version: (2, 4), ..Default::default() };
    back::msl::write_string(&module, &info, &options, &Default::default()).map_err(|e| fault("Metal", &e))?;

    let options = back::hlsl::Options { shader_model: back::hlsl::ShaderModel::V6_2, ..Default::default() };
    let pipeline = Default::default();
    let mut text = String::new();
    let mut writer = back::hlsl::Writer::new(&mut text, &options, &pipeline);
    writer.write(&module, &info, None).map_err(|e| fault("Direct3D", &e))?;
    Ok(())
}
