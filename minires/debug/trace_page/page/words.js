"use strict";
// Every label of the page, in English and in Chinese. Names of modules and options stay as they are.

const LABELS = {
  skipLink: ["Skip to this step", "跳到当前步骤"],
  guess: ["Guess: {label}, {share}", "猜测：{label}，{share}"],
  truth: ["label: {label}", "标签：{label}"],
  lossIs: ["loss {loss}", "损失 {loss}"],
  lossOfThis: ["loss {loss}, as if this were right", "损失 {loss}（假定猜测正确）"],
  lossOfGuess: [
    "The loss is that of the model's own guess, since no label was given.",
    "没有给出标签，损失按模型自己的猜测计算。",
  ],
  inference: ["inference mode", "推理模式"],
  training: ["training mode", "训练模式"],
  channelsKept: [
    "Of each feature map {count} channels are on this page, those with the largest values. Statistics are over all channels.",
    "每个特征图在本页保留 {count} 个数值最大的通道；统计量按全部通道计算。",
  ],
  theme: ["Theme", "主题"],
  themeAuto: ["Theme: system", "主题：跟随系统"],
  themeLight: ["Theme: light", "主题：浅色"],
  themeDark: ["Theme: dark", "主题：深色"],
  help: ["Keys", "按键"],
  close: ["Close", "关闭"],
  controls: ["Steps", "步骤"],
  first: ["First step", "第一步"],
  previous: ["Previous", "上一步"],
  next: ["Next", "下一步"],
  last: ["Last step", "最后一步"],
  play: ["Play", "播放"],
  pause: ["Pause", "暂停"],
  forward: ["Forward", "前向"],
  backward: ["Backward", "反向"],
  direction: ["Direction", "方向"],
  position: ["Step", "步"],
  search: ["Search a layer or an operation ( / )", "搜索层或操作（ / ）"],
  nothingFound: ["Nothing has this in its name", "没有名称包含此内容"],
  map: ["The network", "网络"],
  stop: ["Step {stop} of {total}, {way}", "第 {stop} 步，共 {total} 步，{way}"],
  stage: ["Stage {number}", "阶段 {number}"],
  scores: ["Scores and loss", "得分与损失"],
  part: ["{count} part", "{count} 个部分"],
  parts: ["{count} parts", "{count} 个部分"],
  opened: ["open", "已展开"],
  closed: ["closed", "已折叠"],
  outside: ["(outside of all modules)", "（不属于任何模块）"],
  within: ["in {block}", "位于 {block}"],
  plot: [
    "Size of activations and gradients, layer by layer (root mean square, logarithmic)",
    "逐层的激活值与梯度的大小（均方根，对数坐标）",
  ],
  activation: ["activation", "激活值"],
  gradient: ["gradient", "梯度"],
  formula: ["Formula", "公式"],
  shapes: ["Shapes", "形状"],
  time: ["Time", "用时"],
  options: ["Options", "选项"],
  statistics: ["Statistics over all values", "全部数值的统计"],
  what: ["what", "张量"],
  shape: ["shape", "形状"],
  mean: ["mean", "均值"],
  std: ["std", "标准差"],
  zeros: ["zeros", "零的比例"],
  min: ["min", "最小"],
  max: ["max", "最大"],
  norm: ["norm", "范数"],
  inputOf: ["Input {label}", "输入 {label}"],
  from: ["from {name}", "来自 {name}"],
  parameter: ["parameter {name}", "参数 {name}"],
  constant: ["constant", "常数"],
  output: ["Output y", "输出 y"],
  incoming: ["Gradient coming in, dy", "传入的梯度 dy"],
  outgoing: ["Gradient going out, d{label}", "传出的梯度 d{label}"],
  gradientOf: ["Gradient d{label}", "梯度 d{label}"],
  picture: ["The picture", "图片"],
  asTheNetworkSees: ["As the network sees it", "网络看到的输入"],
  channelsOf: ["{count} of {total} channels", "{total} 个通道中的 {count} 个"],
  numbersOf: ["{count} of {total} numbers", "{total} 个数中的 {count} 个"],
  channel: ["channel {channel}", "通道 {channel}"],
  number: ["number {channel}", "第 {channel} 个数"],
  placeIn: ["row {i}, column {j}", "第 {i} 行，第 {j} 列"],
  colours: [
    "Colours: blue below zero, orange above; they are full at the size below which 99 of 100 numbers of a picture lie.",
    "颜色：蓝色为负，橙色为正；图中 99% 的数小于颜色达到最深时的大小。",
  ],
  kernels: ["Kernels w", "卷积核 w"],
  kernelGradients: ["Gradients dw of these kernels", "这些卷积核的梯度 dw"],
  weights: ["Weights w", "权重 w"],
  weightGradients: ["Gradients dw of these weights", "这些权重的梯度 dw"],
  rowsOfInputs: [
    "Rows: {inputs} of {allInputs} inputs. Columns: {outputs} of {allOutputs} outputs.",
    "行：{allInputs} 个输入中的 {inputs} 个；列：{allOutputs} 个输出中的 {outputs} 个。",
  ],
  rowsOfOutputs: [
    "Rows: {outputs} of {allOutputs} outputs. Columns: {inputs} of {allInputs} inputs.",
    "行：{allOutputs} 个输出中的 {outputs} 个；列：{allInputs} 个输入中的 {inputs} 个。",
  ],
  biasGradients: ["Gradients db of the bias", "偏置的梯度 db"],
  arithmetic: ["The arithmetic of one number", "一个数的计算过程"],
  pointAt: [
    "Point at a picture, or select it and move with the arrow keys.",
    "把指针移到图上，或选中它并用方向键移动。",
  ],
  total: ["Computed here: {formula}", "此处算得：{formula}"],
  recorded: ["Recorded", "记录值"],
  difference: ["Difference", "差"],
  recordedOnly: ["Recorded value", "记录值"],
  noArithmetic: [
    "For this operation the page shows the recorded value only.",
    "对于此操作，本页只显示记录值。",
  ],
  notKept: [
    "Channel {channel} of {what} is not on this page, so its arithmetic cannot be shown.",
    "{what} 的通道 {channel} 未保留在本页，无法显示其计算过程。",
  ],
  windowOf: ["{label}, channel {channel}", "{label}，通道 {channel}"],
  window: ["window", "窗口"],
  kernel: ["kernel", "卷积核"],
  products: ["products", "乘积"],
  sumOf: ["sum", "和"],
  border: ["Grey cells lie on the border of zeros around the picture.", "灰色格子位于图片四周补零的边界上。"],
  outsideCells: [
    "Grey cells lie outside of the picture and do not count.",
    "灰色格子在图片之外，不参与计算。",
  ],
  otherKept: ["{count} more inputs that are on this page", "本页其余 {count} 个输入"],
  otherRest: ["{count} inputs that are not on this page", "未保留在本页的 {count} 个输入"],
  otherOutputs: ["{count} more outputs that are on this page", "本页其余 {count} 个输出"],
  otherOutputsRest: ["{count} outputs that are not on this page", "未保留在本页的 {count} 个输出"],
  largestProducts: [
    "The {count} largest of {total} products x · dy",
    "{total} 个乘积 x · dy 中最大的 {count} 个",
  ],
  otherProducts: ["all other products", "其余所有乘积"],
  countOf: ["values under the window", "窗口内的数值个数"],
  sumOfMap: ["sum over {count} places", "{count} 个位置之和"],
  winsIn: ["Windows in which this value wins, and their dy", "此值胜出的窗口及其 dy"],
  winsNowhere: [
    "This value wins in no window: its gradient is zero.",
    "此值在任何窗口中都没有胜出，梯度为零。",
  ],
  takenFrom: ["taken from {name}, channel {channel}", "取自 {name} 的通道 {channel}"],
  addedZero: ["a channel of zeros", "补零的通道"],
  borderZero: ["on the border of zeros", "位于补零的边界上"],
  notRead: ["This number was not read, so its gradient is zero.", "此数没有被读取，梯度为零。"],
  withArithmetic: ["With their arithmetic: ", "可查看计算过程："],
  passes: ["y is above zero: dy passes", "y 大于零：dy 通过"],
  stops: ["y is zero: dy stops here", "y 为零：dy 到此为止"],
  fork: [
    "A fork: {count} paths start here, and their gradients are summed",
    "分叉：{count} 条路径从这里出发，它们的梯度相加",
  ],
  single: ["All of it comes from {name}", "全部来自 {name}"],
  sumOfAll: ["Sum", "和"],
  shareOfNorm: ["norm {norm}", "范数 {norm}"],
  startOfBack: [
    "The gradient of the loss with respect to itself is 1: here the way back begins.",
    "损失对自身的梯度是 1：反向传播从这里开始。",
  ],
  probability: ["probability", "概率"],
  score: ["score", "得分"],
  target: ["target", "目标"],
  goTo: ["Go to {name}", "前往 {name}"],
  milliseconds: ["{time} ms", "{time} 毫秒"],
  joins: ["paths join here", "路径在此汇合"],
  failed: ["This page cannot be shown: {message}", "无法显示本页：{message}"],
};

const KEYS = [
  ["→  ←", "next and previous step", "下一步、上一步"],
  ["Home  End", "first and last step", "第一步、最后一步"],
  ["Space", "play and pause", "播放、暂停"],
  ["b", "the same operation in the other direction", "同一操作的另一方向"],
  ["/", "search", "搜索"],
  ["[  ]", "previous and next channel", "上一个、下一个通道"],
  [
    "m",
    "select the first picture; then arrow keys move the point, Escape leaves",
    "选中第一幅图；之后方向键移动位置，Esc 离开",
  ],
  ["Enter", "open or close a stage or block of the map", "展开或折叠网络中的阶段、模块"],
  ["l", "English, 中文", "English、中文"],
  ["t", "theme: system, light, dark", "主题：跟随系统、浅色、深色"],
  ["?", "this help", "本帮助"],
];

// Of each operation its name, what it does, and what its way back does.
const OPERATIONS = {
  input: [
    [
      "Input",
      "The numbers that enter the network: one for each pixel and colour.",
      "How much the loss would change with each number of the picture.",
    ],
    ["输入", "进入网络的数：每个像素的每种颜色一个。", "图片中每个数变化时，损失会变化多少。"],
  ],
  conv2d: [
    [
      "Convolution",
      "A small window slides over the picture. At each place the numbers under it are multiplied with a kernel and summed: one output channel for each kernel.",
      "Each dy is sent back to the numbers that were under its window, times the kernel. The kernel's own gradient is the sum, over all places, of what was under it times dy.",
    ],
    [
      "卷积",
      "小窗口在图上滑动；在每个位置，窗口内的数与卷积核相乘再求和，每个卷积核得到一个输出通道。",
      "每个 dy 乘以卷积核，送回其窗口内的数。卷积核自身的梯度，是所有位置上窗口内的数与 dy 的乘积之和。",
    ],
  ],
  batch_norm: [
    [
      "Batch norm",
      "Each channel is shifted and scaled to mean 0 and variance 1, then scaled by gamma and moved by beta, which are learned.",
      "The gradient is scaled by gamma over the standard deviation. In training, moving one value also moves mean and variance, so two more terms appear.",
    ],
    [
      "批归一化",
      "把每个通道平移、缩放到均值 0、方差 1，再乘以可学习的 gamma，加上可学习的 beta。",
      "梯度乘以 gamma 再除以标准差。训练时改变一个值也会改变均值和方差，因此多出两项。",
    ],
  ],
  relu: [
    [
      "ReLU",
      "Negative numbers become zero, others stay.",
      "The gradient passes where the output is above zero, and stops elsewhere.",
    ],
    ["ReLU", "负数变为零，其余不变。", "输出大于零处梯度通过，其余处为零。"],
  ],
  add: [
    [
      "Addition",
      "Two tensors are added, place by place. In a residual block these are the branch and its shortcut.",
      "Addition hands its gradient to both summands unchanged: this is how it travels along the shortcut.",
    ],
    [
      "加法",
      "两个张量逐位相加；在残差块中，它们是主分支与捷径。",
      "加法把梯度原样交给两个加数：梯度正是这样沿捷径传回的。",
    ],
  ],
  sub: [
    [
      "Subtraction",
      "The second tensor is taken from the first, place by place.",
      "The first gets the gradient, the second its negative.",
    ],
    ["减法", "逐位相减。", "被减数得到梯度，减数得到其相反数。"],
  ],
  mul: [
    [
      "Product",
      "Two tensors are multiplied, place by place. A gate scales whole channels so.",
      "Each factor gets the gradient times the other factor.",
    ],
    ["乘法", "两个张量逐位相乘；门控以此缩放整个通道。", "每个因子得到梯度与另一因子的乘积。"],
  ],
  div: [
    ["Quotient", "The first tensor is divided by the second, place by place.", "See the formula."],
    ["除法", "逐位相除。", "见公式。"],
  ],
  max_pool2d: [
    [
      "Max pooling",
      "Of the numbers under each window the largest is kept.",
      "Each dy goes to the number that won; the others get nothing.",
    ],
    ["最大池化", "保留每个窗口内最大的数。", "每个 dy 交给胜出的数，其余得到零。"],
  ],
  avg_pool2d: [
    [
      "Average pooling",
      "The mean of the numbers under each window.",
      "Each dy is shared evenly by the numbers under its window.",
    ],
    ["平均池化", "取每个窗口内的平均值。", "每个 dy 平均分给窗口内的数。"],
  ],
  global_avg_pool2d: [
    [
      "Global average pooling",
      "Each channel becomes one number: its mean over all places.",
      "Every place gets the same share of dy.",
    ],
    ["全局平均池化", "每个通道变成一个数：所有位置的平均值。", "每个位置得到 dy 的相同一份。"],
  ],
  linear: [
    [
      "Dense layer",
      "Each output is a weighted sum of all inputs, plus a bias.",
      "Each input gets the sum of all dy, weighted; each weight gets its input times dy.",
    ],
    [
      "全连接层",
      "每个输出是全部输入的加权和，再加偏置。",
      "每个输入得到全部 dy 的加权和；每个权重得到其输入与 dy 的乘积。",
    ],
  ],
  matmul: [
    ["Matrix product", "Rows times columns.", "See the formula."],
    ["矩阵乘法", "行乘以列。", "见公式。"],
  ],
  cross_entropy: [
    [
      "Softmax and loss",
      "Scores become probabilities (softmax). The loss is minus the logarithm of the label's probability: small where the network is sure and right.",
      "The gradient of each score is its probability minus what it should be: 1 for the label, 0 for others.",
    ],
    [
      "Softmax 与损失",
      "得分变成概率（softmax）；损失是标签概率的负对数：网络既确定又正确时很小。",
      "每个得分的梯度是它的概率减去应有的值：标签为 1，其余为 0。",
    ],
  ],
  softmax: [
    ["Softmax", "Scores become probabilities, which sum to 1.", "See the formula."],
    ["Softmax", "得分变成和为 1 的概率。", "见公式。"],
  ],
  log_softmax: [
    ["Log-softmax", "The logarithms of the probabilities.", "See the formula."],
    ["对数 Softmax", "概率的对数。", "见公式。"],
  ],
  sigmoid: [
    [
      "Sigmoid",
      "Every number is brought between 0 and 1.",
      "The gradient times y (1 - y): small where y is near 0 or 1.",
    ],
    ["Sigmoid", "把每个数变到 0 与 1 之间。", "梯度乘以 y (1 - y)：y 接近 0 或 1 处很小。"],
  ],
  dropout: [
    [
      "Dropout",
      "In training some numbers are set to zero by chance, the others are scaled up.",
      "The gradient passes where the number was kept, scaled alike.",
    ],
    ["Dropout", "训练时随机将一些数置零，其余放大。", "保留的数处梯度通过，并同样放大。"],
  ],
  concat: [
    [
      "Concatenation",
      "The channels of several tensors side by side.",
      "Each tensor gets back the gradient of its own channels.",
    ],
    ["拼接", "把几个张量的通道并排放在一起。", "每个张量取回自己通道的梯度。"],
  ],
  dense_buffer: [
    [
      "Concatenation",
      "New channels are put behind all that came before: each layer of a dense block reads everything.",
      "The gradient is cut where the channels were joined.",
    ],
    ["拼接", "新通道接在此前所有通道之后：密集块的每一层都能读到全部。", "梯度在拼接处切开。"],
  ],
  pad_channels: [
    [
      "Shortcut A",
      "Every second place is taken and channels of zeros are added, so that the shortcut fits the branch.",
      "The gradient goes back to the places that were read; that of added channels is dropped.",
    ],
    [
      "捷径 A",
      "隔位取值并补上零通道，使捷径与主分支形状一致。",
      "梯度送回被读取的位置；补零通道的梯度丢弃。",
    ],
  ],
  pad: [
    [
      "Zero padding",
      "A border of zeros is put around the picture.",
      "The gradient of the border is cut off.",
    ],
    ["补零", "在图片四周补上零。", "边界上的梯度被裁掉。"],
  ],
  reshape: [
    ["Reshape", "The same numbers in another shape.", "The gradient in the shape from before."],
    ["变形", "同样的数，换一种形状。", "梯度恢复原来的形状。"],
  ],
  astype: [
    ["Type", "The same numbers in another floating-point type, rounded to it.", "The gradient in the type from before."],
    ["类型", "同样的数，换一种浮点类型（舍入）。", "梯度恢复原来的类型。"],
  ],
  round: [
    ["Rounding", "The weights rounded to 16 bits, for the product.", "The gradient passes through as it is."],
    ["舍入", "权重为乘积舍入到 16 位。", "梯度原样通过。"],
  ],
  transpose: [
    ["Transpose", "The axes in another order.", "The gradient with its axes put back."],
    ["转置", "交换轴的次序。", "梯度的轴恢复原来次序。"],
  ],
  getitem: [
    ["Selection", "Some of the numbers.", "The gradient goes back to where they were read."],
    ["取出", "取出其中一部分数。", "梯度送回被读取的位置。"],
  ],
  local_response_norm: [
    [
      "Local response norm",
      "Each number is divided by a norm of its neighbours among the channels.",
      "See the formula.",
    ],
    ["局部响应归一化", "每个数除以相邻通道的范数。", "见公式。"],
  ],
  exp: [
    ["Exponential", "e to the power of each number.", "The gradient times y."],
    ["指数", "每个数的指数函数值。", "梯度乘以 y。"],
  ],
  log: [
    ["Logarithm", "The natural logarithm of each number.", "The gradient divided by x."],
    ["对数", "每个数的自然对数。", "梯度除以 x。"],
  ],
  sqrt: [
    ["Square root", "The square root of each number.", "The gradient divided by 2 y."],
    ["平方根", "每个数的平方根。", "梯度除以 2 y。"],
  ],
  neg: [
    ["Negative", "Each number with the other sign.", "The gradient with the other sign."],
    ["取负", "每个数取相反数。", "梯度取相反数。"],
  ],
  pow: [
    ["Power", "Each number to the power of p.", "The gradient times p x to the power of p - 1."],
    ["幂", "每个数的 p 次幂。", "梯度乘以 p 与 x 的 p - 1 次幂。"],
  ],
  sum: [
    ["Sum", "Numbers are added up.", "Each gets the same gradient."],
    ["求和", "把数相加。", "每个数得到相同的梯度。"],
  ],
  mean: [
    ["Mean", "The mean of some numbers.", "Each gets an even share of the gradient."],
    ["平均", "求平均值。", "每个数平均分得梯度。"],
  ],
  max: [
    ["Maximum", "The largest of some numbers.", "The largest gets the gradient."],
    ["最大值", "取最大的数。", "最大的数得到梯度。"],
  ],
};

let language = 0; // 0 English, 1 Chinese: the place in each list above

/** A label with the given values in the places of {names}. */
function word(key, values = {}) {
  return LABELS[key][language].replace(/\{(\w+)\}/g, (_, name) => String(values[name]));
}

/** [name, what it does, what its way back does] of an operation. */
function operationWords(op) {
  const known = OPERATIONS[op];
  if (known) return known[language];
  return [op, LABELS.noArithmetic[language], LABELS.noArithmetic[language]];
}
