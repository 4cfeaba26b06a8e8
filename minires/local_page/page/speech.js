/** What a page says, in English and Chinese: {en: {key: words}, zh: {key: words}}. */
let words = { en: {}, zh: {} };
let language = "en";

/** Say these words from now on, and put them into the elements that ask for some. */
export function speak(given) {
  words = given;
  putWords();
}

/** The words for a key in the language of the page, with {name} replaced by the values given. */
export function say(key, values = {}) {
  return words[language][key].replace(/\{(\w+)\}/g, (_, name) => values[name]);
}

/** Change between English and Chinese, and put the words into the elements that ask for some. */
export function changeLanguage() {
  language = language === "en" ? "zh" : "en";
  putWords();
}

function putWords() {
  document.documentElement.lang = language;
  for (const element of document.querySelectorAll("[data-word]")) {
    element.textContent = say(element.dataset.word);
  }
  const other = document.getElementById("language");
  other.textContent = language === "en" ? "中文" : "English";
  other.lang = language === "en" ? "zh" : "en";
}
