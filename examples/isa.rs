//! Compiles kernels for a GPU that is not there and tells what its compiler made of them: registers, spills, how many
//! subgroups fit, and of each loop how much is multiplication and how much is not.
//!
//! Mesa's driver for AMD compiles without a GPU if `RADV_FORCE_FAMILY` names one (until Mesa 25):
//!
//!     WGRAD_CLASS=discrete WGRAD_DEBUG=4 cargo run --release --example bench_suite -- --only mlp_step 2> kernels.txt
//!     RADV_FORCE_FAMILY=navi21 VK_DRIVER_FILES=/usr/share/vulkan/icd.d/radeon_icd.x86_64.json \
//!         cargo run --release --example isa -- kernels.txt

use std::collections::{BTreeMap, HashSet};
use std::ffi::{CStr, CString};
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use ash::{khr, vk};
use clap::Parser;
use naga::back::spv;
use naga::proc::{BoundsCheckPolicies, BoundsCheckPolicy};
use naga::valid::{Capabilities, ShaderStages, SubgroupOperationSet, ValidationFlags, Validator};

/// Compiles kernels for a GPU that is not there.
#[derive(Parser)]
struct Args {
    /// What `WGRAD_DEBUG=4` printed
    files: Vec<PathBuf>,
    /// Only kernels whose name contains this
    #[arg(long, default_value = "")]
    only: String,
    /// Print the instructions as well
    #[arg(long)]
    code: bool,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let mut seen = HashSet::new();
    let gpu = Gpu::open()?;
    for file in &args.files {
        let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
        for (name, wgsl) in kernels(&text) {
            if name.contains(&args.only) && seen.insert(wgsl.to_string()) {
                match gpu.compile(wgsl) {
                    Ok(compiled) => report(name, &compiled, args.code),
                    Err(e) => println!("{name}: {e:#}"),
                }
            }
        }
    }
    Ok(())
}

/// Names and WGSL. What else is printed comes behind a kernel's last line, which is a brace.
fn kernels(text: &str) -> impl Iterator<Item = (&str, &str)> {
    text.split("// kernel ").skip(1).filter_map(|part| {
        let (name, rest) = part.split_once('\n')?;
        let end = rest.rfind("\n}\n")? + 3;
        Some((name, &rest[..end]))
    })
}

fn report(name: &str, compiled: &Compiled, code: bool) {
    println!("{name}");
    // But for hashes, and what shaders of pictures have.
    let figures: Vec<String> = (compiled.figures.iter())
        .filter(|(name, value)| **value > 0 && !name.contains("ash") && !name.contains("Combined"))
        .map(|(name, value)| format!("{name} {value}"))
        .collect();
    println!("    {}", figures.join(", "));
    for turn in loops(&compiled.code) {
        println!("    {turn}");
    }
    if code {
        println!("{}", compiled.code);
    }
}

/// What is in each loop of a listing: blocks from a label to the last jump back to it.
fn loops(code: &str) -> Vec<String> {
    const KINDS: [(&str, &[&str]); 6] = [
        ("multiplications", &["v_fma", "v_dual_fma", "v_pk_fma", "v_wmma"]),
        ("other arithmetic", &["v_"]),
        ("workgroup memory", &["ds_"]),
        ("memory", &["buffer_", "global_"]),
        ("waits", &["s_waitcnt"]),
        ("scalar", &["s_"]),
    ];
    let lines: Vec<&str> = code.lines().map(|l| l.split(';').next().unwrap_or("").trim()).collect();
    let mut labels = BTreeMap::new();
    let mut ends = BTreeMap::new();
    for (i, line) in lines.iter().enumerate() {
        if let Some(label) = line.strip_suffix(':') {
            labels.insert(label, i);
        } else if let Some(&start) = line.split_whitespace().last().and_then(|to| labels.get(to)) {
            ends.insert(start, i);
        }
    }
    let count = |(&start, &end): (&usize, &usize)| {
        let mut counts = [0; KINDS.len()];
        for line in &lines[start..end] {
            if let Some(kind) =
                KINDS.iter().position(|(_, begins)| begins.iter().any(|b| line.starts_with(b)))
            {
                counts[kind] += 1;
            }
        }
        let counts = KINDS.iter().zip(counts).filter(|(_, n)| *n > 0);
        let counts: Vec<String> = counts.map(|((kind, _), n)| format!("{n} {kind}")).collect();
        format!("loop at {} {}", lines[start], counts.join(", "))
    };
    ends.iter().map(count).collect()
}

struct Compiled {
    figures: BTreeMap<String, u64>,
    code: String,
}

/// A Vulkan device that compiles; nothing runs on it, and it is never closed, as the process ends with it.
struct Gpu {
    device: ash::Device,
    insights: khr::pipeline_executable_properties::Device,
    _entry: ash::Entry,
}

impl Gpu {
    fn open() -> Result<Gpu> {
        let app = vk::ApplicationInfo::default().api_version(vk::API_VERSION_1_3);
        let instance = vk::InstanceCreateInfo::default().application_info(&app);
        let mut insight = vk::PhysicalDevicePipelineExecutablePropertiesFeaturesKHR::default()
            .pipeline_executable_info(true);
        let mut robust = vk::PhysicalDeviceRobustness2FeaturesEXT::default().robust_buffer_access2(true);
        let mut matrices = vk::PhysicalDeviceCooperativeMatrixFeaturesKHR::default().cooperative_matrix(true);
        let mut v11 = vk::PhysicalDeviceVulkan11Features::default().storage_buffer16_bit_access(true);
        let mut v12 =
            vk::PhysicalDeviceVulkan12Features::default().shader_float16(true).vulkan_memory_model(true);
        let basic = vk::PhysicalDeviceFeatures::default().robust_buffer_access(true).shader_int64(true);
        let queues = [vk::DeviceQueueCreateInfo::default().queue_priorities(&[1.0])];
        let wanted =
            [khr::pipeline_executable_properties::NAME, c"VK_EXT_robustness2", khr::cooperative_matrix::NAME];
        // SAFETY: the loader is a Vulkan loader, every structure is filled as Vulkan asks, and lives until it was read.
        unsafe {
            let entry = ash::Entry::load().context("no Vulkan loader")?;
            let instance = entry.create_instance(&instance, None)?;
            let all = instance.enumerate_physical_devices()?;
            let physical = *all.first().context("no GPU, and RADV_FORCE_FAMILY names none")?;
            let there = instance.enumerate_device_extension_properties(physical)?;
            let has = |name: &CStr| there.iter().any(|e| e.extension_name_as_c_str() == Ok(name));
            ensure!(has(wanted[0]), "this driver does not tell what it compiled");
            let names: Vec<_> = wanted.iter().filter(|n| has(n)).map(|n| n.as_ptr()).collect();
            let mut device = vk::DeviceCreateInfo::default()
                .queue_create_infos(&queues)
                .enabled_extension_names(&names)
                .enabled_features(&basic)
                .push_next(&mut insight)
                .push_next(&mut v11)
                .push_next(&mut v12);
            if has(wanted[1]) {
                device = device.push_next(&mut robust);
            }
            if has(wanted[2]) {
                device = device.push_next(&mut matrices);
            }
            let device = instance.create_device(physical, &device, None)?;
            let insights = khr::pipeline_executable_properties::Device::new(&instance, &device);
            Ok(Gpu { device, insights, _entry: entry })
        }
    }

    fn compile(&self, wgsl: &str) -> Result<Compiled> {
        let module = naga::front::wgsl::parse_str(wgsl)?;
        let entry = module.entry_points.first().context("no entry point")?.name.clone();
        let spirv = spirv(&module, &entry)?;
        let bindings: Vec<_> = (module.global_variables.iter())
            .filter_map(|(_, variable)| {
                let kind = match variable.space {
                    naga::AddressSpace::Uniform => vk::DescriptorType::UNIFORM_BUFFER,
                    _ => vk::DescriptorType::STORAGE_BUFFER,
                };
                Some(
                    vk::DescriptorSetLayoutBinding::default()
                        .binding(variable.binding?.binding)
                        .descriptor_type(kind)
                        .descriptor_count(1)
                        .stage_flags(vk::ShaderStageFlags::COMPUTE),
                )
            })
            .collect();
        let entry = CString::new(entry)?;
        let flags = vk::PipelineCreateFlags::CAPTURE_STATISTICS_KHR
            | vk::PipelineCreateFlags::CAPTURE_INTERNAL_REPRESENTATIONS_KHR;
        // SAFETY: the SPIR-V is of a validated module, the layout has all of its bindings, and every structure lives
        // until it was read.
        unsafe {
            let device = &self.device;
            let code = vk::ShaderModuleCreateInfo::default().code(&spirv);
            let shader = device.create_shader_module(&code, None)?;
            let set = vk::DescriptorSetLayoutCreateInfo::default().bindings(&bindings);
            let sets = [device.create_descriptor_set_layout(&set, None)?];
            let layout = vk::PipelineLayoutCreateInfo::default().set_layouts(&sets);
            let layout = device.create_pipeline_layout(&layout, None)?;
            let stage = vk::PipelineShaderStageCreateInfo::default()
                .stage(vk::ShaderStageFlags::COMPUTE)
                .module(shader)
                .name(&entry);
            let pipeline = vk::ComputePipelineCreateInfo::default().stage(stage).layout(layout).flags(flags);
            let pipelines = device.create_compute_pipelines(vk::PipelineCache::null(), &[pipeline], None);
            let pipelines = pipelines.map_err(|(_, e)| e)?;
            self.told(&vk::PipelineExecutableInfoKHR::default().pipeline(pipelines[0]))
        }
    }

    /// # Safety
    /// The pipeline was made by this device, to be asked.
    unsafe fn told(&self, executable: &vk::PipelineExecutableInfoKHR) -> Result<Compiled> {
        // SAFETY: as the caller promises; buffers are as long as Vulkan said in the call before.
        unsafe {
            let statistics = self.insights.get_pipeline_executable_statistics(executable)?;
            let whole =
                statistics.iter().filter(|s| s.format == vk::PipelineExecutableStatisticFormatKHR::UINT64);
            let figures = whole.map(|s| {
                let name = s.name_as_c_str().unwrap_or_default().to_string_lossy().into_owned();
                (name, s.value.u64)
            });
            let figures = figures.collect();
            let ask = self.insights.fp().get_pipeline_executable_internal_representations_khr;
            let device = self.device.handle();
            let mut count = 0;
            ask(device, executable, &mut count, std::ptr::null_mut()).result()?;
            let mut texts = vec![vk::PipelineExecutableInternalRepresentationKHR::default(); count as usize];
            ask(device, executable, &mut count, texts.as_mut_ptr()).result()?;
            let mut room: Vec<Vec<u8>> = texts.iter().map(|text| vec![0; text.data_size]).collect();
            for (text, room) in texts.iter_mut().zip(&mut room) {
                text.p_data = room.as_mut_ptr().cast();
            }
            ask(device, executable, &mut count, texts.as_mut_ptr()).result()?;
            // The last is what runs.
            let code = room.last().map(|text| String::from_utf8_lossy(text).into_owned());
            Ok(Compiled { figures, code: code.unwrap_or_default() })
        }
    }
}

/// As wgpu translates kernels for a Vulkan driver that checks what is read and written itself.
fn spirv(module: &naga::Module, entry: &str) -> Result<Vec<u32>> {
    let mut validator = Validator::new(ValidationFlags::all(), Capabilities::all());
    let validator =
        validator.subgroup_stages(ShaderStages::all()).subgroup_operations(SubgroupOperationSet::all());
    let info = validator.validate(module).map_err(|e| anyhow::anyhow!("{e:?}"))?;
    let options = spv::Options {
        lang_version: (1, 6),
        bounds_check_policies: BoundsCheckPolicies {
            index: BoundsCheckPolicy::Restrict,
            buffer: BoundsCheckPolicy::Unchecked,
            image_load: BoundsCheckPolicy::Unchecked,
            binding_array: BoundsCheckPolicy::Unchecked,
        },
        force_loop_bounding: true,
        zero_initialize_workgroup_memory: spv::ZeroInitializeWorkgroupMemoryMode::None,
        ..Default::default()
    };
    let pipeline =
        spv::PipelineOptions { shader_stage: naga::ShaderStage::Compute, entry_point: entry.into() };
    Ok(spv::write_vec(module, &info, &options, Some(&pipeline))?)
}
