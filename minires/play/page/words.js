/** What the page says, in English and Chinese. {name} is filled in by say(). */
const WORDS = {
  en: {
    theme: "Dark / light",
    about: "{model}, trained on {dataset}, {count} classes",
    picturesTitle: "Pictures of {source}: {first} to {last} of {count}",
    picturesHint: "Choose one to show it to the network. Under it stands the class that its folder says, or its name.",
    pictureAlt: "Picture {name}", pictureBroken: "Picture {name} cannot be read",
    earlier: "Earlier", later: "Later", number: "From number",
    truthSame: "Its folder says the same.", truthOther: "Its folder says “{label}”.",
    ask: "Show it a picture",
    tabFile: "Picture file", tabDraw: "Draw", tabCamera: "Camera",
    drop: "Drop a picture here, or choose one",
    dropHint: "JPEG, PNG, WebP, GIF, BMP, TIFF; up to 20 MB. It stays on this machine.",
    canvas: "Drawing area",
    drawHint: "Draw with mouse or finger; each stroke is looked at when it ends. By keyboard: arrow keys move the pen, space puts it down and lifts it.",
    penColour: "Colour", penWidth: "Width", clear: "Start anew",
    cameraHint: "The square you see is what the network gets.",
    cameraStart: "Start the camera", cameraStop: "Stop the camera", cameraShoot: "Take the picture",
    cameraRefused: "The browser was not allowed to use the camera. Allow it in the address bar, or use a file.",
    cameraAbsent: "No camera was found. Connect one, or use a file.",
    cameraBusy: "The camera cannot be read; another program may be using it.",
    working: "Looking at it …",
    answer: "Its guess",
    guess: "{label}, with {percent} probability",
    seen: "As the network sees it: {side} × {side} pixels",
    barsHint: "Probability of each class. Choose one to see what speaks for it.",
    more: "Show all {count} classes", fewer: "Show the first {count}",
    trace: "Step through this picture",
    traceHint: "Every layer, forward and backward, in a new tab",
    mapsTitle: "Where it sees “{label}”",
    mapsHint: "One map for each stage of the network, from the first to the last. The brighter, the more that place speaks for the class. Early stages see small places, late ones large ones.",
    map: "Map of stage {name} over the picture",
    mapCaption: "{name}: a map of {high} × {wide} places",
    nothing: "{name}: nothing here speaks for this class",
    lay: "Lay the map over the picture",
    sharesTitle: "How the score of “{label}” comes about: {score}",
    sharesHint: "For this very picture the network is a sum: what the picture itself gives, and what the biases of each stage add. Together they are the score before softmax.",
    part: "part", adds: "adds",
    picture: "the picture itself", rest: "the layers after them", total: "score",
    large: "This file has {size} MB; at most 20 MB are taken. Make the picture smaller.",
    gone: "minires play does not answer any more. Start it again and use the new address.",
    refused: "{message}",
  },
  zh: {
    theme: "深色 / 浅色",
    about: "{model}，在 {dataset} 上训练，{count} 个类别",
    picturesTitle: "{source} 中的图片：第 {first} 至 {last} 张，共 {count} 张",
    picturesHint: "选择一张给网络看。图片下方是它所在文件夹的类别，或文件名。",
    pictureAlt: "图片 {name}", pictureBroken: "图片 {name} 无法读取",
    earlier: "上一页", later: "下一页", number: "从第几张开始",
    truthSame: "所在文件夹的类别与此一致。", truthOther: "所在文件夹的类别是“{label}”。",
    ask: "给它看一张图片",
    tabFile: "图片文件", tabDraw: "手绘", tabCamera: "摄像头",
    drop: "把图片拖到这里，或点击选择",
    dropHint: "JPEG、PNG、WebP、GIF、BMP、TIFF，最大 20 MB。图片不会离开本机。",
    canvas: "绘图区",
    drawHint: "用鼠标或手指画；每画完一笔，网络就看一次。键盘：方向键移动画笔，空格键落笔、提笔。",
    penColour: "颜色", penWidth: "粗细", clear: "清空",
    cameraHint: "您看到的方形区域就是网络得到的图片。",
    cameraStart: "打开摄像头", cameraStop: "关闭摄像头", cameraShoot: "拍照",
    cameraRefused: "浏览器没有使用摄像头的权限。请在地址栏中允许，或改用文件。",
    cameraAbsent: "没有找到摄像头。请连接摄像头，或改用文件。",
    cameraBusy: "无法读取摄像头，可能正被其他程序占用。",
    working: "正在看图……",
    answer: "它的猜测",
    guess: "{label}，概率 {percent}",
    seen: "网络看到的图片：{side} × {side} 像素",
    barsHint: "每个类别的概率。选择一个类别，看图中哪里支持它。",
    more: "显示全部 {count} 个类别", fewer: "只显示前 {count} 个",
    trace: "逐步查看这张图片",
    traceHint: "在新标签页中查看每一层的前向与反向",
    mapsTitle: "它在哪里看到“{label}”",
    mapsHint: "网络的每个阶段一张图，从最前到最后。越亮的地方越支持这个类别。前面的阶段看小处，后面的阶段看大处。",
    map: "阶段 {name} 的激活图，叠加在图片上",
    mapCaption: "{name}：{high} × {wide} 个位置",
    nothing: "{name}：这里没有支持该类别的地方",
    lay: "把激活图叠加在图片上",
    sharesTitle: "“{label}”的得分是怎样来的：{score}",
    sharesHint: "对这一张图片来说，网络是一个和：图片本身给出的，加上每个阶段的偏置所添加的。合起来就是 softmax 之前的得分。",
    part: "部分", adds: "贡献",
    picture: "图片本身", rest: "其后的层", total: "得分",
    large: "这个文件有 {size} MB，最多接受 20 MB。请把图片缩小。",
    gone: "minires play 不再响应。请重新启动，并使用新的地址。",
    refused: "无法使用这张图片：{message}",
  },
};

let language = "en";

/** The words for a key in the language of the page, with {name} replaced by the values given. */
export function say(key, values = {}) {
  return WORDS[language][key].replace(/\{(\w+)\}/g, (_, name) => values[name]);
}

/** Change between English and Chinese, and put the words into the elements that ask for some. */
export function changeLanguage() {
  language = language === "en" ? "zh" : "en";
  putWords();
}

export function putWords() {
  document.documentElement.lang = language;
  for (const element of document.querySelectorAll("[data-word]")) {
    element.textContent = say(element.dataset.word);
  }
  const other = document.getElementById("language");
  other.textContent = language === "en" ? "中文" : "English";
  other.lang = language === "en" ? "zh" : "en";
}
